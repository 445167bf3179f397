// SPDX-License-Identifier: Apache-2.0
/*
 * spank_qrmi.so registers --qpu with sbatch, salloc and srun, and carries the selection to Slurm's hooks. This file has
 * what Slurm calls, and passes each call on to the file for its context:
 *
 *   allocator (sbatch, salloc)  submit.c   as the user: checks --qpu, and puts the selection and the user's own
 *   local (srun)                           <name>_QRMI_* variables into the job-control environment, which Prolog and
 *                                          Epilog see with a SPANK_ prefix
 *   remote (slurmstepd)         remote.c   as root: tells the step's tasks their selection and the state directory,
 *                                          records the ids of a job array, and with --task-prolog runs TaskProlog
 *   slurmd, job_script                     nothing: Prolog, TaskProlog and Epilog do all other work
 *
 * There is no slurm_spank_job_prolog and no slurm_spank_job_epilog: slurmd starts an extra slurmstepd per job for plugins
 * that have one (spank_has_prolog() in src/common/spank.c). There is no slurm_spank_user_init either: init_post_opt runs
 * once per step and can already write the step's environment. In slurmstepd no callback returns an error: with `required`
 * that drains the node (job_manager() in src/slurmd/slurmstepd/mgr.c).
 *
 * The plugin's arguments are for the hooks; only remote.c reads two, --state-dir and --task-prolog. Secrets may be among
 * them, such as a proxy's password in --env:NAME=VALUE, so logs have their number only. For the same reason, logs name the
 * user's variables and never show a value.
 *
 * In all comments, spank.c is Slurm's src/common/spank.c (src/common/plugstack.c up to 22.05), and env.c is
 * src/common/env.c.
 */
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

#include "names.h"
#include "remote.h"
#include "submit.h"
#include "task_prolog.h"

/*
 * The releases of Slurm that this file is for, by slurm_api_version() >> 16, which grows by one with each. It is built once:
 * of Slurm it uses nothing that differs between them. SPANK's functions, its items and errors, and the layout of struct
 * spank_option are the same in slurm/spank.h of all of them, and nothing else of Slurm is read.
 */
static const struct {
	long api;
	unsigned char year, month;
} releases[] = {
	{ 38, 22, 5 }, { 39, 23, 2 }, { 40, 23, 11 }, { 41, 24, 5 }, { 42, 24, 11 }, { 43, 25, 5 }, { 44, 25, 11 }, { 45, 26, 5 },
};

/* Shows `qrmi-slurm doctor` that this file is ours and which releases it is for: the same as above. */
static const struct {
	char name[sizeof "qrmi-slurm stub for Slurm"];
	char releases[sizeof "22.05 23.02 23.11 24.05 24.11 25.05 25.11 26.05"];
} marker __attribute__((used)) = {
	"qrmi-slurm stub for Slurm",
	"22.05 23.02 23.11 24.05 24.11 25.05 25.11 26.05",
};

/*
 * -fvisibility=hidden hides all symbols except these, which Slurm's plugin loader looks up. SPANK_PLUGIN() would make
 * plugin_version that of the headers. Slurm loads a plugin only if year and month of that version are its own
 * (_verify_syms() in src/common/plugin.c), and reads it after the constructor below.
 */
#pragma GCC visibility push(default)
extern const char plugin_name[];
extern const char plugin_type[];
extern const unsigned int spank_plugin_version;
extern unsigned int plugin_version;
const char plugin_name[] = "spank_qrmi";
const char plugin_type[] = "spank";
const unsigned int spank_plugin_version = 1;
unsigned int plugin_version = 0;
extern spank_f slurm_spank_init;
extern spank_f slurm_spank_init_post_opt;
extern spank_f slurm_spank_task_init;
extern spank_f slurm_spank_exit;
#pragma GCC visibility pop

/* A release that is not known keeps version 0, which Slurm refuses: --qpu is then an unknown option. */
static __attribute__((constructor)) void choose_version(void)
{
	const long api = slurm_api_version() >> 16;

	for (size_t i = 0; i < sizeof releases / sizeof releases[0]; i++)
		if (releases[i].api == api)
			plugin_version = ((unsigned int)releases[i].year << 16) | ((unsigned int)releases[i].month << 8);
	if (plugin_version == 0)
		slurm_error(LOG ": this file is for Slurm %s, not for this release (API %ld): there is no --qpu.",
			    marker.releases, api);
}

/* How many lines of plugstack.conf load this file. Slurm loads it once and calls it for each of them. */
static unsigned int lines;
static unsigned int calls_of_post_opt;

static int spank_qrmi_option(int val, const char *optarg, int remote)
{
	const char *value = optarg != NULL ? optarg : "";

	(void)val;
	return remote ? spank_qrmi_remote_option(value) : spank_qrmi_submit_option(value);
}

static struct spank_option option_qpu = {
	.name = (char *)"qpu",
	.arginfo = (char *)"names",
	.usage = (char *)"Comma-separated list of QPU resources to use.",
	.has_arg = 1,
	.val = 0,
	.cb = spank_qrmi_option,
};

static void log_enter(const char *phase, spank_t sp, int argc)
{
	slurm_debug(LOG "(%d, %u): -> %s argc=%d remote=%d", (int)getpid(), (unsigned int)getuid(), phase, argc,
		    spank_remote(sp));
}

static void log_leave(const char *phase, int rc)
{
	slurm_debug(LOG "(%d, %u): <- %s rc=%d", (int)getpid(), (unsigned int)getuid(), phase, rc);
}

int slurm_spank_init(spank_t sp, int ac, char *argv[])
{
	int rc;

	(void)argv;
	switch (spank_context()) {
	case S_CTX_ALLOCATOR:
		log_enter("slurm_spank_init", sp, ac);
		spank_qrmi_allocator_init();
		break;
	case S_CTX_LOCAL:
		log_enter("slurm_spank_init", sp, ac);
		spank_qrmi_local_init();
		break;
	case S_CTX_REMOTE:
		log_enter("slurm_spank_init", sp, ac);
		break;
	default:
		return ESPANK_SUCCESS;
	}
	if (++lines > 1) {
		slurm_error(LOG ": plugstack.conf has %u lines that load this plugin; only the first counts, an admin should "
			    "remove the others.", lines);
		return ESPANK_SUCCESS;
	}
	rc = (int)spank_option_register(sp, &option_qpu);
	log_leave("slurm_spank_init", rc);
	return spank_context() == S_CTX_REMOTE ? ESPANK_SUCCESS : rc;
}

int slurm_spank_init_post_opt(spank_t sp, int ac, char *argv[])
{
	int rc;

	/* Once for all lines: a second call would take back what the first one put. */
	if (calls_of_post_opt++ % (lines > 0 ? lines : 1) != 0)
		return ESPANK_SUCCESS;
	log_enter("slurm_spank_init_post_opt", sp, ac);
	switch (spank_context()) {
	case S_CTX_ALLOCATOR:
		rc = spank_qrmi_allocator_init_post_opt(sp);
		break;
	case S_CTX_LOCAL:
		rc = spank_qrmi_local_init_post_opt(sp);
		break;
	case S_CTX_REMOTE:
		spank_qrmi_remote_init_post_opt(sp, ac, argv);
		rc = ESPANK_SUCCESS;
		break;
	default:
		rc = ESPANK_SUCCESS;
		break;
	}
	log_leave("slurm_spank_init_post_opt", rc);
	return rc;
}

int slurm_spank_task_init(spank_t sp, int ac, char *argv[])
{
	static bool is_done; /* for another line that loads this file */

	(void)ac;
	(void)argv;
	if (!is_done)
		task_prolog_begin_task(sp);
	is_done = true;
	return ESPANK_SUCCESS;
}

int slurm_spank_exit(spank_t sp, int ac, char *argv[])
{
	(void)sp;
	(void)ac;
	(void)argv;
	switch (spank_context()) {
	case S_CTX_ALLOCATOR:
	case S_CTX_LOCAL:
		spank_qrmi_submit_exit();
		break;
	default:
		break;
	}
	return ESPANK_SUCCESS;
}
