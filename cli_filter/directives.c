// SPDX-License-Identifier: Apache-2.0
#include "directives.h"

#include <string.h>

#include "text.h"

const char *directives_fault(const char *output, size_t bytes)
{
	const char *const end = output + bytes;
	bool is_whole = false;
	size_t lines = 0;

	if (bytes > DIRECTIVES_MAX_BYTES)
		return "printed more than 4 MiB";
	if (memchr(output, '\0', bytes) != NULL)
		return "printed something that is not text";
	for (const char *line = output; line < end;) {
		const char *const newline = memchr(line, '\n', (size_t)(end - line));
		const size_t length = (size_t)((newline != NULL ? newline : end) - line);

		if (length > DIRECTIVES_MAX_LINE_BYTES)
			return "printed a line of more than 128 KiB";
		if (++lines > DIRECTIVES_MAX_LINES)
			return "printed more than 8192 lines";
		if (newline == NULL)
			return "was cut off in the middle of a line";
		if (length == strlen(DIRECTIVES_END) && memcmp(line, DIRECTIVES_END, length) == 0)
			is_whole = true;
		line = newline + 1;
	}
	return is_whole ? NULL : "was cut off: it did not print its last line, `" DIRECTIVES_END "`";
}

/* Reads `NAME=value` or, with is_export false, `NAME`. Blanks around the name do not count, as in slurmstepd. */
static void read_variable(char *text, bool is_export, struct directive *found)
{
	char *const name = text + strspn(text, " \t");
	const size_t length = strcspn(name, is_export ? "=" : " \t");
	char *name_end = name + length;

	if (is_export && *name_end != '=')
		return;
	found->value = is_export ? name_end + 1 : "";
	while (name_end > name && (name_end[-1] == ' ' || name_end[-1] == '\t'))
		name_end--;
	*name_end = '\0';
	for (const char *at = name; *at != '\0'; at++)
		if (is_control(*at) || *at == '=')
			return;
	found->name = name;
	if (name[0] != '\0')
		found->kind = is_export ? DIRECTIVE_EXPORT : DIRECTIVE_UNSET;
}

char *directive_next(char *line, const char *end, struct directive *found)
{
	char *const newline = line < end ? memchr(line, '\n', (size_t)(end - line)) : NULL;

	*found = (struct directive){ DIRECTIVE_OTHER, "", "" };
	if (newline == NULL)
		return NULL;
	*newline = '\0';
	if (starts_with(line, "print ")) {
		found->kind = DIRECTIVE_PRINT;
		found->value = line + strlen("print ");
	} else if (starts_with(line, "export ")) {
		read_variable(line + strlen("export "), true, found);
	} else if (starts_with(line, "unset ")) {
		read_variable(line + strlen("unset "), false, found);
	}
	return newline + 1;
}
