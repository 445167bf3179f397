// SPDX-License-Identifier: Apache-2.0
/*
 * In slurmstepd: runs TaskProlog for a step, where the plugin's line says so (--task-prolog=PATH), and does for all of its
 * tasks on this node what it printed. Slurm's own TaskProlog= runs it for every task of every job.
 */
#ifndef SPANK_QRMI_TASK_PROLOG_H
#define SPANK_QRMI_TASK_PROLOG_H

#include <stdbool.h>
#include <stdint.h>

#include <slurm/spank.h>

struct step {
	uint32_t job_id;
	const char *program; /* --task-prolog */
	bool has_qpus; /* else only variables of a surrounding job have to go */
};

/* Runs it as the job's user; blocks for at most 20 s. The step's environment has to be complete. */
void task_prolog_run(spank_t sp, const struct step *step);

/* In a task, as the user: the first one prints what the job is to read, and none runs without the QPUs that were asked
 * for. */
void task_prolog_begin_task(spank_t sp);

#endif
