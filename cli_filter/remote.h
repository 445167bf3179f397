// SPDX-License-Identifier: Apache-2.0
/* In slurmstepd, as root: tells a step's tasks their selection, records the ids of a job array, and runs TaskProlog where
 * the plugin's line has --task-prolog. */
#ifndef SPANK_QRMI_REMOTE_H
#define SPANK_QRMI_REMOTE_H

#include <slurm/spank.h>

int spank_qrmi_remote_option(const char *value);

/* By now all options are known and the step's environment can be written (spank_stack_post_opt() in spank.c). */
int spank_qrmi_remote_init_post_opt(spank_t sp, int ac, char *argv[]);

#endif
