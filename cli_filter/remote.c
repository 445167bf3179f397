// SPDX-License-Identifier: Apache-2.0
#include "remote.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>

#include "names.h"
#include "selection.h"
#include "settings.h"
#include "task_prolog.h"
#include "text.h"

/* The hooks use the same default. */
#define STATE_DIR_OPTION "--state-dir="
#define STATE_DIR_DEFAULT "/var/spool/qrmi-slurm"

#define TASK_PROLOG_OPTION "--task-prolog="

/* File in the job's folder that holds the ids of the array and the task, as 10_2. The accounting reads it, since no hook
 * is told these ids. */
#define ARRAY_FILE "array"

/* What a cluster's name may be, since it is the name of a folder as well. The hooks have the same rule. */
#define CLUSTER_MAX_BYTES 255U
#define CLUSTER_BYTES "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"

/* Longest HET_SELECTIONS that is read: 8 of the longest selections, or 250 bytes for each of 128 components
 * (MAX_HET_JOB_COMPONENTS in slurm.h). With a longer one, the option that Slurm sent counts. */
#define HET_SELECTIONS_MAX_BYTES 32768U

/* --qpu of this step. */
static struct selection of_step;

int spank_qrmi_remote_option(const char *value)
{
	const char *fault = selection_fault(value);

	/* sbatch, salloc and srun have checked the value; somebody else's program has not. The step goes on without. */
	if (fault != NULL) {
		slurm_error(LOG ": --qpu %s.", fault);
		return ESPANK_SUCCESS;
	}
	selection_set(&of_step, value);
	slurm_debug(LOG ": --qpu=[%s]", of_step.names);
	return ESPANK_SUCCESS;
}

/*
 * Reads this component's selection from HET_SELECTIONS, which exists if srun submitted the heterogeneous job. The job ids
 * of its components are consecutive (_slurm_rpc_allocate_het_job() in src/slurmctld/proc_req.c).
 */
static void het_selection(spank_t sp, uint32_t component)
{
	static char all[HET_SELECTIONS_MAX_BYTES];
	char *line = all;

	if (spank_getenv(sp, HET_SELECTIONS, all, (int)sizeof all) != ESPANK_SUCCESS)
		return;
	selection_clear(&of_step);
	for (; component > 0 && line != NULL; component--) {
		line = strchr(line, '\n');
		if (line != NULL)
			line++;
	}
	if (line == NULL)
		return;
	line[strcspn(line, "\n")] = '\0';
	if (selection_fault(line) == NULL)
		selection_set(&of_step, line);
}

/* The number in a variable of the step's environment; 0 if it is not set. */
static uint32_t number_in(spank_t sp, const char *name)
{
	char text[sizeof "4294967295"];

	if (spank_getenv(sp, name, text, (int)sizeof text) != ESPANK_SUCCESS)
		return 0;
	return (uint32_t)strtoul(text, NULL, 10);
}

static bool is_set(spank_t sp, const char *name)
{
	char text[1];
	const spank_err_t rc = spank_getenv(sp, name, text, (int)sizeof text);

	return rc == ESPANK_SUCCESS || rc == ESPANK_NOSPACE;
}

static bool is_filled(spank_t sp, const char *name)
{
	char text[2];
	const spank_err_t rc = spank_getenv(sp, name, text, (int)sizeof text);

	return rc == ESPANK_NOSPACE || (rc == ESPANK_SUCCESS && text[0] != '\0');
}

/*
 * Finds the selection of a heterogeneous job's component. Returns whether it is not the first, so that the environment
 * does not tell what the component was submitted with.
 */
static bool is_further_component(spank_t sp, uint32_t job_id)
{
	static char held[SELECTION_MAX_BYTES + 1];
	/* Slurm has set it in a batch step; in others it comes from srun's environment (srun_job.c). */
	const uint32_t first_id = number_in(sp, "SLURM_JOB_ID");

	if (first_id == 0)
		return false;
	if (job_id == first_id) {
		het_selection(sp, 0);
		return false;
	}
	if (job_id > first_id)
		het_selection(sp, job_id - first_id);
	/* An srun in the job's script or in salloc's shell inherits the first component's --qpu, which is not this one's. */
	if (spank_getenv(sp, JOB_SELECTION_IN_TASKS, held, (int)sizeof held) == ESPANK_SUCCESS &&
	    strcmp(held, of_step.names) == 0)
		selection_clear(&of_step);
	return true;
}

/*
 * Whether the step was started from elsewhere: from a login shell, from another job, or with an environment of the user's
 * making (`srun --jobid=N`, `env -i`). Its environment then does not tell whether the job has QPUs. What it tells of
 * another job goes.
 */
static bool is_attached(spank_t sp, uint32_t job_id)
{
	const uint32_t here = number_in(sp, "SLURM_JOB_ID");
	const uint32_t from = number_in(sp, SRUN_JOB_ID);
	const bool was_told = number_in(sp, STEP_JOB_ID) == job_id; /* by a step like this, in whose shell srun runs */
	uint32_t step_id;

	if (spank_get_item(sp, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS || step_id == SLURM_BATCH_SCRIPT)
		return false;
	if (from == 0 || from == here || from == job_id)
		return was_told || !is_set(sp, SUBMIT_HOST);
	spank_unsetenv(sp, JOB_SELECTION_IN_TASKS);
	spank_unsetenv(sp, OPTION_IN_ENVIRONMENT);
	spank_unsetenv(sp, "SLURM_JOB_RESTART_COUNT");
	if (!is_set(sp, SRUN_ASKED))
		selection_clear(&of_step);
	return true;
}

/* An option of the plugin's line; NULL if it is not there. The hooks refuse a line that has one twice. */
static const char *option(int ac, char *argv[], const char *name)
{
	for (int i = 0; i < ac; i++)
		if (starts_with(argv[i], name))
			return argv[i] + strlen(name);
	return NULL;
}

static const char *state_dir(int ac, char *argv[])
{
	const char *given = option(ac, argv, STATE_DIR_OPTION);

	return given != NULL ? given : STATE_DIR_DEFAULT;
}

/*
 * Writes the array's ids into the folder that Prolog made for the job; without a folder nothing was acquired. Array jobs
 * are batch jobs, and only a batch step has slurmctld's own ids, and a SLURM_CLUSTER_NAME that Slurm has overwritten
 * (env_array_for_batch_job() in env.c). In srun's steps both come from the user's environment (stepd_step_rec_create() in
 * slurmstepd_job.c).
 */
static void spank_qrmi_remote_array(spank_t sp, const char *dir)
{
	static char path[4096];
	char cluster[CLUSTER_MAX_BYTES + 1];
	uint32_t step_id;
	uint32_t job_id;
	uint32_t array_id;
	uint32_t task_id;
	int length;
	int fd;

	if (spank_get_item(sp, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS || step_id != SLURM_BATCH_SCRIPT)
		return;
	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ARRAY_ID, &array_id) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ARRAY_TASK_ID, &task_id) != ESPANK_SUCCESS || array_id == 0 || array_id >= NO_VAL)
		return;
	if (spank_getenv(sp, "SLURM_CLUSTER_NAME", cluster, (int)sizeof cluster) != ESPANK_SUCCESS ||
	    cluster[0] == '.' || cluster[0] == '\0' || cluster[strspn(cluster, CLUSTER_BYTES)] != '\0')
		return;
	length = snprintf(path, sizeof path, "%s/%s/%u/" ARRAY_FILE, dir, cluster, job_id);
	if (length < 0 || (size_t)length >= sizeof path)
		return;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	dprintf(fd, "%u_%u\n", array_id, task_id);
	close(fd);
}

/* Whether Prolog has left a folder for the job; without one nothing was acquired. */
static bool has_folder(const char *dir, uint32_t job_id)
{
	static char path[4096];
	const int length = snprintf(path, sizeof path, "%s/%s/%u", dir, settings_cluster_name(), job_id);

	return settings_cluster_name() != NULL && length > 0 && (size_t)length < sizeof path && access(path, F_OK) == 0;
}

/* Runs TaskProlog, if the plugin's line says so, in a step of which its environment says that there is something to do. */
static void spank_qrmi_remote_task_prolog(spank_t sp, struct step step, bool is_untold, const char *dir)
{
	char text[sizeof "4294967295"];
	uint32_t step_id;

	spank_unsetenv(sp, TASK_PROLOG_RAN);
	if (step.program == NULL || spank_get_item(sp, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS ||
	    step_id == SLURM_EXTERN_CONT)
		return;
	step.has_qpus = of_step.given || is_filled(sp, JOB_SELECTION_IN_TASKS) ||
			(is_untold && has_folder(dir, step.job_id));
	if (!step.has_qpus) {
		spank_unsetenv(sp, STEP_JOB_ID);
		spank_unsetenv(sp, STATE_DIR);
		if (!is_set(sp, OUTER_JOB_ID))
			return;
	}
	task_prolog_run(sp, &step);
	if (!step.has_qpus)
		return;
	snprintf(text, sizeof text, "%u", step.job_id);
	spank_setenv(sp, TASK_PROLOG_RAN, text, 1);
}

int spank_qrmi_remote_init_post_opt(spank_t sp, int ac, char *argv[])
{
	char text[sizeof "4294967295"];
	uint32_t job_id = 0;
	bool is_untold = false;

	if (spank_get_item(sp, S_JOB_ID, &job_id) == ESPANK_SUCCESS) {
		/* Both look at the environment, and change what the other one reads. */
		const bool attached = is_attached(sp, job_id);

		is_untold = is_further_component(sp, job_id) || attached;
	}
	spank_unsetenv(sp, HET_SELECTIONS);
	spank_unsetenv(sp, SRUN_JOB_ID);
	spank_unsetenv(sp, SRUN_ASKED);
	spank_unsetenv(sp, STEP_JOB_ID);
	spank_unsetenv(sp, STEP_SELECTION);
	spank_unsetenv(sp, STATE_DIR);
	if (of_step.given)
		spank_setenv(sp, STEP_SELECTION, of_step.names, 1);
	if (is_untold) {
		snprintf(text, sizeof text, "%u", job_id);
		spank_setenv(sp, STEP_JOB_ID, text, 1);
	}
	if (of_step.given || is_untold) {
		if (settings_cluster_name() != NULL)
			spank_setenv(sp, CLUSTER_NAME, settings_cluster_name(), 1);
		spank_setenv(sp, STATE_DIR, state_dir(ac, argv), 1);
	}
	if (of_step.given)
		spank_qrmi_remote_array(sp, state_dir(ac, argv));
	spank_qrmi_remote_task_prolog(sp, (struct step){ .job_id = job_id, .program = option(ac, argv, TASK_PROLOG_OPTION) },
				      is_untold, state_dir(ac, argv));
	return ESPANK_SUCCESS;
}
