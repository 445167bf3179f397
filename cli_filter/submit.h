// SPDX-License-Identifier: Apache-2.0
/* At submission, as the user: the allocator context (sbatch, salloc), the local one (srun), and what both share. */
#ifndef SPANK_QRMI_SUBMIT_H
#define SPANK_QRMI_SUBMIT_H

#include <slurm/spank.h>

void spank_qrmi_allocator_init(void);
void spank_qrmi_local_init(void);

/*
 * Checks a --qpu value. Only this callback can refuse one: what init_post_opt returns counts for `required` plugins only
 * (_do_call_stack() in spank.c). Slurm adds a line of its own, "Invalid --qpu argument".
 */
int spank_qrmi_submit_option(const char *value);

/* Called once for each component of a heterogeneous job, all in one process. */
int spank_qrmi_allocator_init_post_opt(spank_t sp);
int spank_qrmi_local_init_post_opt(spank_t sp);

void spank_qrmi_submit_exit(void);

#endif
