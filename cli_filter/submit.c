// SPDX-License-Identifier: Apache-2.0
#include "submit.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job_control.h"
#include "names.h"
#include "selection.h"
#include "variables.h"

/* --qpu of the current component. */
static struct selection requested;

/* --qpu of the job in which this command runs, from the environment. */
static struct selection inherited;

/* Whether srun starts a step in an existing job; otherwise it submits one. */
static bool srun_in_job;

/* What srun has read so far of a heterogeneous job that it submits: the first component's selection is kept here, and
 * HET_SELECTIONS has all of them once there is a second. */
static bool srun_has_component;
static struct selection srun_first;

/* Reads the environment before Slurm and this plugin change it. */
static void spank_qrmi_submit_init(void)
{
	const char *option = getenv(OPTION_IN_ENVIRONMENT);

	selection_clear(&requested);
	selection_clear(&inherited);
	if (option != NULL && selection_fault(option) == NULL)
		selection_set(&inherited, option);
}

/* A new job must not carry the marks of the job in which it is submitted, nor the variables that that job was submitted
 * with. Slurm's OPTION_IN_ENVIRONMENT stays, so a nested sbatch inherits --qpu. */
void spank_qrmi_allocator_init(void)
{
	unsetenv(JOB_SELECTION_IN_TASKS);
	unsetenv(STEP_SELECTION);
	job_control_forget_outer();
	spank_qrmi_submit_init();
}

void spank_qrmi_local_init(void)
{
	/* srun runs in the job that this variable names, unless --jobid names another. Without either it submits one
	 * (env_vars[] in srun's opt.c). */
	const char *job_id = getenv("SLURM_JOB_ID");

	srun_in_job = job_id != NULL;
	srun_has_component = false;
	unsetenv(HET_SELECTIONS);
	unsetenv(SRUN_ASKED);
	if (srun_in_job) {
		setenv(SRUN_JOB_ID, job_id, 1);
		spank_qrmi_submit_init();
	} else {
		unsetenv(SRUN_JOB_ID);
		unsetenv(SUBMIT_HOST);
		spank_qrmi_allocator_init();
	}
}

int spank_qrmi_submit_option(const char *value)
{
	const char *fault;

	/*
	 * After each component sbatch and salloc write its options into their own environment (_set_spank_env()) and read
	 * them back for the next component, which did not ask for them. spank_process_env_options() passes the pointer that
	 * getenv() returned, so the address shows that a value is not from the command line or the script.
	 */
	if (value == getenv(OPTION_IN_ENVIRONMENT)) {
		if (inherited.given)
			value = inherited.names;
		else if (selection_fault(value) == NULL)
			return ESPANK_SUCCESS;
	} else if (srun_in_job) {
		setenv(SRUN_ASKED, "1", 1);
	}
	fault = selection_fault(value);
	if (fault != NULL) {
		slurm_error(LOG ": --qpu %s.", fault);
		return ESPANK_BAD_ARG;
	}
	selection_set(&requested, value);
	/* A step uses the variables that its job was submitted with. */
	if (!srun_in_job && !variables_are_sound(requested.names)) {
		selection_clear(&requested);
		return ESPANK_BAD_ARG;
	}
	slurm_debug(LOG ": --qpu=[%s]", requested.names);
	return ESPANK_SUCCESS;
}

static int spank_qrmi_submit_init_post_opt(spank_t sp, const struct selection *job, const char *prefix)
{
	job_control_take_back(sp);
	if (job->given)
		return job_control_put(sp, job->names, prefix);
	/* Slurm keeps the option of an earlier component (_spank_stack_set_remote_options_env() in spank.c). */
	spank_job_control_unsetenv(sp, OPTION_IN_JOB_CONTROL);
	return ESPANK_SUCCESS;
}

int spank_qrmi_allocator_init_post_opt(spank_t sp)
{
	const int rc = spank_qrmi_submit_init_post_opt(sp, &requested, "");

	selection_clear(&requested);
	return rc;
}

/*
 * Adds a component's selection to HET_SELECTIONS. slurmstepd needs the list because Slurm sends the last component's
 * option to the steps of all (spank_set_remote_options() in spank.c), and all components share srun's environment.
 */
static int het_selections_add(const struct selection *selection)
{
	const char *before = getenv(HET_SELECTIONS);
	size_t size;
	char *all;
	int rc;

	if (!srun_has_component) {
		srun_has_component = true;
		srun_first = *selection;
		return ESPANK_SUCCESS;
	}
	if (before == NULL)
		before = srun_first.names;
	size = strlen(before) + strlen(selection->names) + sizeof "\n";
	all = malloc(size);
	if (all == NULL)
		return ENOMEM;
	snprintf(all, size, "%s\n%s", before, selection->names);
	rc = setenv(HET_SELECTIONS, all, 1);
	free(all);
	return rc == 0 ? ESPANK_SUCCESS : ENOMEM;
}

int spank_qrmi_local_init_post_opt(spank_t sp)
{
	static struct selection job;
	const char *held;
	int rc;

	if (!srun_in_job) {
		rc = het_selections_add(&requested);
		if (rc != ESPANK_SUCCESS)
			return rc;
		return spank_qrmi_allocator_init_post_opt(sp);
	}
	/* Without PrologFlags=Alloc the first step's launch request on a node starts the job's Prolog, with srun's job-control
	 * environment: Prolog needs what the job was submitted with, not what this step selects. */
	held = getenv(JOB_SELECTION_IN_TASKS);
	selection_clear(&job);
	if (held != NULL && selection_fault(held) == NULL)
		selection_set(&job, held);
	selection_clear(&requested);
	return spank_qrmi_submit_init_post_opt(sp, &job, JOB_CONTROL_IN_TASKS);
}

void spank_qrmi_submit_exit(void)
{
	job_control_forget();
}
