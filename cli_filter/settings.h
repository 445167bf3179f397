// SPDX-License-Identifier: Apache-2.0
/* In slurmstepd: what Slurm's configuration says, and what slurmd calls this node. */
#ifndef SPANK_QRMI_SETTINGS_H
#define SPANK_QRMI_SETTINGS_H

#include <stddef.h>

/* This cluster's name; NULL if it is unknown. A step's environment may have none, or another cluster's. */
const char *settings_cluster_name(void);

/* UnkillableStepTimeout in seconds; Slurm's default, 60, if it is unknown. */
long settings_unkillable_step_timeout_s(void);

/* Writes the node's name, as in SLURMD_NODENAME; "" if it is unknown. */
void settings_node_name(char *name, size_t size);

#endif
