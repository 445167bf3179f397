// SPDX-License-Identifier: Apache-2.0
/* The user's own <name>_QRMI_* variables: which of them Prolog gets, and how large they may be. */
#ifndef SPANK_QRMI_VARIABLES_H
#define SPANK_QRMI_VARIABLES_H

#include <stdbool.h>
#include <stddef.h>

/* Longest value in bytes. Keys, tokens and certificates need a few KiB; Slurm silently drops values of 256 KiB and more
 * from Prolog's environment (ENV_BUFSIZE in env.c). */
#define VALUE_MAX_BYTES 65536U

/* Longest name in bytes. Prolog's name for it has "SPANK_" in front, and Slurm silently drops names that do not fit into
 * 256 bytes with their NUL (_env_array_entry_splitter() in env.c). */
#define VARIABLE_MAX_BYTES (256U - sizeof "SPANK_")

/* Most bytes in all. execve(2) gives Prolog's environment a quarter of slurmd's stack limit, usually 2 of 8 MiB. Above
 * that Prolog and Epilog cannot start, which drains the node. A user with a larger stack limit has room for more. */
#define VARIABLES_MAX_BYTES (1024U * 1024U)

/* What each variable costs there besides its name and value: "SPANK_", a NUL and a pointer. */
#define VARIABLE_COST_BYTES (sizeof "SPANK_" + sizeof(char *))

#define TOO_MANY_VARIABLES "the <name>_QRMI_* variables for the QPUs in --qpu total more than 1 MiB; unset some."

/* Whether Prolog gets a NAME=VALUE entry: it is the user's own variable for a QPU that the term of --qpu may choose. */
bool variable_is_forwarded(const char *entry, const char *term, size_t term_length);

/* Whether a NAME=VALUE entry is the variable of some QPU. */
bool variable_is_qpus(const char *entry);

/* Says why a NAME=VALUE entry cannot be forwarded, as a sentence; NULL if it can. */
const char *variable_fault(const char *entry, size_t name_length);

/* Whether all variables for a selection can be forwarded; logs the first fault. */
bool variables_are_sound(const char *selection);

#endif
