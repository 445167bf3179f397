/* Another plugin with an option --qpu, so that ours cannot register its own. */
#include <slurm/spank.h>

SPANK_PLUGIN(other_qpu_option, 1)

static int accepted(int val, const char *optarg, int remote)
{
	(void) val;
	(void) optarg;
	(void) remote;
	return 0;
}

static struct spank_option option = {(char *) "qpu", (char *) "names", (char *) "another --qpu", 1, 0, accepted};

int slurm_spank_init(spank_t sp, int argc, char **argv)
{
	(void) argc;
	(void) argv;
	return (int) spank_option_register(sp, &option);
}
