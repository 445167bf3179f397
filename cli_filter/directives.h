// SPDX-License-Identifier: Apache-2.0
/*
 * The output of a TaskProlog: lines such as `export NAME=value`, `unset NAME` and `print text`. The job's user can write
 * whatever they like into it.
 */
#ifndef SPANK_QRMI_DIRECTIVES_H
#define SPANK_QRMI_DIRECTIVES_H

#include <stdbool.h>
#include <stddef.h>

/* Most bytes of output: the job's own variables are at most 1 MiB (variables.h), and the site's are far less. */
#define DIRECTIVES_MAX_BYTES (4096U * 1024U)

/* Most lines: 64 QPUs with 128 variables each. */
#define DIRECTIVES_MAX_LINES 8192U

/* Longest line: execve(2) takes no longer variable (MAX_ARG_STRLEN). */
#define DIRECTIVES_MAX_LINE_BYTES (128U * 1024U)

/* The last line. Without it the output is cut off. */
#define DIRECTIVES_END "end"

enum directive_kind { DIRECTIVE_OTHER, DIRECTIVE_EXPORT, DIRECTIVE_UNSET, DIRECTIVE_PRINT };

struct directive {
	enum directive_kind kind;
	const char *name; /* of a variable */
	const char *value; /* of a variable, or the text to print */
};

/* Says what is wrong with an output, as the end of a sentence that starts with the program; NULL if nothing is. */
const char *directives_fault(const char *output, size_t bytes);

/*
 * Reads the first line of an output, and changes it: the directive's texts are in there.
 *
 * Returns where the next line begins, or NULL if there is none. An incomplete line at the end is not read.
 */
char *directive_next(char *line, const char *end, struct directive *found);

#endif
