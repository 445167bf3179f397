// SPDX-License-Identifier: Apache-2.0
/*
 * Runs a program of the site as the job's user, from root's slurmstepd, within a time and with a limited output. The user
 * may stop, trace or kill the program, and keep its output open: none of that takes longer than the time.
 */
#ifndef SPANK_QRMI_PROGRAM_H
#define SPANK_QRMI_PROGRAM_H

#include <stddef.h>
#include <sys/types.h>

/* The descriptor in which the program finds its data. A shell uses 3 for itself. */
#define PROGRAM_DATA_FD 4

/* Exit statuses if the program could not be run, as a shell has them. */
#define PROGRAM_NOT_EXECUTABLE 126
#define PROGRAM_NOT_FOUND 127

struct program {
	char *path; /* absolute */
	uid_t uid;
	gid_t gid;
	char *const *environment; /* all of it */
	const char *data;
	size_t data_bytes;
	long time_ms;
	size_t output_max_bytes;
};

enum program_end {
	PROGRAM_EXITED, /* with `status`; 128 and the signal's number if one killed it */
	PROGRAM_NOT_STARTED, /* `status` is an errno */
	PROGRAM_TOO_LONG, /* it was killed when its time was over */
	PROGRAM_TOO_MUCH, /* it was killed when it had printed too much */
};

struct program_result {
	enum program_end end;
	int status;
	char *output; /* of both standard output and standard error; free() it */
	size_t bytes;
};

void program_run(const struct program *program, struct program_result *result);

/* Says why users must not run a file as root's, as the end of a sentence that starts with its path; NULL if they may. */
const char *program_fault(const char *path);

#endif
