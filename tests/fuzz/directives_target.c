/*
 * What the plugin reads of a TaskProlog's output, under libFuzzer. An input is an output; it is checked and then read.
 *
 * With -DSTANDALONE the program reads each file it is given once, for valgrind.
 */
#define _GNU_SOURCE
#include "../../cli_filter/directives.c"

#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *const output = calloc(size > 0 ? size : 1, 1); /* exactly sized, so that an overread is seen */
	struct directive found;
	size_t lines = 0;
	size_t newlines = 0;
	const char *fault;

	if (size > 0)
		memcpy(output, data, size);
	for (size_t i = 0; i < size; i++)
		newlines += data[i] == '\n';
	fault = directives_fault(output, size);
	if (fault == NULL) {
		/* It is text, ends with a line, is within its limits, and says so itself. */
		assert(size <= DIRECTIVES_MAX_BYTES && newlines <= DIRECTIVES_MAX_LINES && output[size - 1] == '\n');
		assert(memchr(output, '\0', size) == NULL && memmem(output, size, DIRECTIVES_END "\n", 4) != NULL);
	}
	/* It is read only without a fault, but must not depend on that. */
	for (char *line = output; (line = directive_next(line, output + size, &found)) != NULL; lines++) {
		assert(line > output && line <= output + size);
		/* What goes into the environment is a name, a value and nothing else. */
		if (found.kind == DIRECTIVE_EXPORT || found.kind == DIRECTIVE_UNSET) {
			assert(found.name[0] != '\0' && strchr(found.name, '=') == NULL);
			for (const char *at = found.name; *at != '\0'; at++)
				assert(!is_control(*at));
		}
		assert(strchr(found.name, '\n') == NULL && strchr(found.value, '\n') == NULL);
	}
	assert(lines == newlines);
	free(output);
	return 0;
}

#ifdef STANDALONE
int main(int argc, char *argv[])
{
	static uint8_t data[1 << 20];

	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");
		size_t size;

		if (file == NULL)
			return 2;
		size = fread(data, 1, sizeof data, file);
		fclose(file);
		LLVMFuzzerTestOneInput(data, size);
	}
	return 0;
}
#endif
