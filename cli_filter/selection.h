// SPDX-License-Identifier: Apache-2.0
/* The selection: the list of QPU names and patterns that --qpu gives. */
#ifndef SPANK_QRMI_SELECTION_H
#define SPANK_QRMI_SELECTION_H

#include <stdbool.h>
#include <stddef.h>

/* Longest --qpu in bytes: 40 names of 100 bytes. Slurm's own copies of it still leave the environment plenty of room. */
#define SELECTION_MAX_BYTES 4096U

/* Most terms, and most terms that are choices. A name listed twice counts once, a choice each time. slurmctld and Prolog
 * have the same limits (qrmi_slurm.lua, slurm/selection.py), and refuse more in the same words. */
#define SELECTION_MAX_TERMS 64U
#define SELECTION_MAX_CHOICES 8U

/* A --qpu value that passed the check, without blanks around its commas. */
struct selection {
	bool given;
	char names[SELECTION_MAX_BYTES + 1];
};

/*
 * Says what is wrong with a --qpu value and what to do, as the end of a sentence that starts with "--qpu"; NULL if nothing
 * is. Only values that can never work are refused: the login node does not know which QPUs exist.
 */
const char *selection_fault(const char *text);

/* Stores text, which must have passed selection_fault(). */
void selection_set(struct selection *selection, const char *text);

void selection_clear(struct selection *selection);

/* Length of `any:` or `least-busy:` if a term begins with one of them and goes on; else 0. */
size_t selection_prefix(const char *term, size_t length);

/* Length of the first name in a list, without trailing blanks; *next is the rest of the list, or NULL at its end. */
size_t selection_first(const char *list, const char **next);

#endif
