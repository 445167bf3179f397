// SPDX-License-Identifier: Apache-2.0
/*
 * What this plugin puts into the job-control environment, which Prolog and Epilog see with a SPANK_ prefix. sbatch and
 * salloc have one for all components of a heterogeneous job, so each component first takes back what the last one put.
 */
#ifndef SPANK_QRMI_JOB_CONTROL_H
#define SPANK_QRMI_JOB_CONTROL_H

#include <slurm/spank.h>

/* Puts the selection and the user's own variables for it, which the process environment has under this prefix. */
int job_control_put(spank_t sp, const char *selection, const char *prefix);

void job_control_take_back(spank_t sp);

/* Frees the list of names to take back. */
void job_control_forget(void);

/* Removes from the process environment what Slurm repeats there of the variables of the surrounding job. */
void job_control_forget_outer(void);

#endif
