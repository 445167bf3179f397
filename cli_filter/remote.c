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
#include "text.h"

/* The hooks use the same default. */
#define STATE_DIR_OPTION "--state-dir="
#define STATE_DIR_DEFAULT "/var/spool/qrmi-slurm"

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
	/* sbatch, salloc and srun have checked the value; somebody else's program has not. Slurm logs the refusal and starts
	 * the step. */
	if (selection_fault(value) != NULL)
		return ESPANK_BAD_ARG;
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

/* Finds the selection of a heterogeneous job's component, and tells its tasks their own job's id. */
static void spank_qrmi_remote_het_component(spank_t sp)
{
	static char held[SELECTION_MAX_BYTES + 1];
	char text[sizeof "4294967295"];
	uint32_t job_id;
	uint32_t first_id;

	spank_unsetenv(sp, STEP_JOB_ID);
	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS)
		return;
	/* Slurm has set it in a batch step; in others it comes from srun's environment (srun_job.c). */
	if (spank_getenv(sp, "SLURM_JOB_ID", text, (int)sizeof text) != ESPANK_SUCCESS)
		return;
	first_id = (uint32_t)strtoul(text, NULL, 10);
	if (job_id == first_id) {
		het_selection(sp, 0);
		return;
	}
	if (job_id > first_id)
		het_selection(sp, job_id - first_id);
	/* An srun in the job's script or in salloc's shell inherits the first component's --qpu, which is not this one's. */
	if (spank_getenv(sp, JOB_SELECTION_IN_TASKS, held, (int)sizeof held) == ESPANK_SUCCESS &&
	    strcmp(held, of_step.names) == 0)
		selection_clear(&of_step);
	snprintf(text, sizeof text, "%u", job_id);
	spank_setenv(sp, STEP_JOB_ID, text, 1);
}

/* --state-dir of the plugin's line. The hooks refuse a line that has it twice. */
static const char *state_dir(int ac, char *argv[])
{
	for (int i = 0; i < ac; i++)
		if (starts_with(argv[i], STATE_DIR_OPTION))
			return argv[i] + strlen(STATE_DIR_OPTION);
	return STATE_DIR_DEFAULT;
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

int spank_qrmi_remote_init_post_opt(spank_t sp, int ac, char *argv[])
{
	int rc;

	spank_qrmi_remote_het_component(sp);
	spank_unsetenv(sp, HET_SELECTIONS);
	if (!of_step.given) {
		spank_unsetenv(sp, STATE_DIR);
		return (int)spank_unsetenv(sp, STEP_SELECTION);
	}
	spank_qrmi_remote_array(sp, state_dir(ac, argv));
	rc = (int)spank_setenv(sp, STEP_SELECTION, of_step.names, 1);
	if (rc == ESPANK_SUCCESS)
		rc = (int)spank_setenv(sp, STATE_DIR, state_dir(ac, argv), 1);
	return rc;
}
