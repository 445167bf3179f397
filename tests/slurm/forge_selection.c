/* A user's own SPANK plugin: puts a selection into the job-control environment of any srun, step or job. */
#include <slurm/spank.h>

SPANK_PLUGIN(forge_selection, 1)

int slurm_spank_init_post_opt(spank_t sp, int argc, char **argv)
{
	(void) argc;
	(void) argv;
	if (spank_context() == S_CTX_LOCAL)
		return spank_job_control_setenv(sp, "QRMI_QPU", "ibm_demo", 1);
	return 0;
}
