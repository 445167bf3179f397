/*
 * The SPANK plugin under libFuzzer. An input is a context, a list of --qpu values and an environment.
 *
 * Byte 0 selects the context and the job's id. The rest are texts that end with 0xff. The first is --qpu. NAME=VALUE texts
 * go into the environment of the process (allocator, local) or of the step (remote); a text that starts with '!' is --qpu
 * of the next component. With -DSTANDALONE the program reads each file it is given once, for valgrind.
 */

#define _GNU_SOURCE

/* All in one unit: each input needs fresh plugin state, as in each of Slurm's programs. */
#include "../../cli_filter/directives.c"
#include "../../cli_filter/job_control.c"
#include "../../cli_filter/program.c"
#include "../../cli_filter/remote.c"
#include "../../cli_filter/selection.c"
#include "../../cli_filter/settings.c"
#include "../../cli_filter/spank_qrmi.c"
#include "../../cli_filter/submit.c"
#include "../../cli_filter/task_prolog.c"
#include "../../cli_filter/variables.c"

#include <assert.h>
#include <stdarg.h>

#define ENTRIES_MAX 64

static spank_context_t context;
static uint32_t fuzzed_job_id;
static char *step[ENTRIES_MAX + 8];
static size_t steps;
static size_t control_bytes;
static struct spank_option *registered;

#define QUIET(function) void function(const char *format, ...) { (void)format; }
QUIET(slurm_debug)

void slurm_error(const char *format, ...)
{
	static char line[1 << 20];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
}

long slurm_api_version(void) { return 38L << 16; }
const char *spank_strerror(spank_err_t err) { (void)err; return "x"; }
spank_context_t spank_context(void) { return context; }
int spank_remote(spank_t sp) { (void)sp; return context == S_CTX_REMOTE; }

spank_err_t spank_option_register(spank_t sp, struct spank_option *option)
{
	(void)sp;
	registered = option;
	return ESPANK_SUCCESS;
}

spank_err_t spank_get_item(spank_t sp, spank_item_t item, ...)
{
	va_list arguments;

	(void)sp;
	(void)item; /* all items are ids */
	va_start(arguments, item);
	*va_arg(arguments, uint32_t *) = fuzzed_job_id;
	va_end(arguments);
	return ESPANK_SUCCESS;
}

static size_t step_find(const char *name)
{
	const size_t length = strlen(name);

	for (size_t i = 0; i < steps; i++)
		if (strncmp(step[i], name, length) == 0 && step[i][length] == '=')
			return i;
	return steps;
}

spank_err_t spank_getenv(spank_t sp, const char *name, char *buffer, int size)
{
	const size_t at = step_find(name);

	(void)sp;
	if (at == steps)
		return ESPANK_ENV_NOEXIST;
	snprintf(buffer, (size_t)size, "%s", step[at] + strlen(name) + 1);
	return strlen(step[at] + strlen(name) + 1) >= (size_t)size ? ESPANK_NOSPACE : ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t sp, const char *name, const char *value, int overwrite)
{
	(void)sp;
	(void)overwrite;
	/* Whatever the plugin puts into a step's environment is one line. */
	for (const char *at = value; *at != '\0'; at++)
		assert(!is_control(*at));
	(void)name;
	return ESPANK_SUCCESS;
}

spank_err_t spank_unsetenv(spank_t sp, const char *name)
{
	const size_t at = step_find(name);

	(void)sp;
	if (at < steps) {
		free(step[at]);
		step[at] = step[--steps];
	}
	return ESPANK_SUCCESS;
}

/* Whether a selection is within the limits, counted in another way than selection.c does. */
static bool is_within_limits(const char *value)
{
	static char copy[SELECTION_MAX_BYTES + 1];
	const char *terms[SELECTION_MAX_BYTES];
	size_t count = 0;
	size_t choices = 0;

	if (strlen(value) > SELECTION_MAX_BYTES)
		return false;
	strcpy(copy, value);
	for (char *rest = copy, *term = strsep(&rest, ","); term != NULL; term = strsep(&rest, ",")) {
		const bool is_prefixed = (starts_with(term, "any:") && term[4] != '\0') ||
					 (starts_with(term, "least-busy:") && term[11] != '\0');
		bool is_new = true;

		if (is_prefixed || strpbrk(term, "*?[") != NULL)
			choices++;
		else
			for (size_t i = 0; i < count; i++)
				is_new = is_new && strcmp(terms[i], term) != 0;
		if (is_new)
			terms[count++] = term;
	}
	return count <= SELECTION_MAX_TERMS && choices <= SELECTION_MAX_CHOICES;
}

spank_err_t spank_job_control_setenv(spank_t sp, const char *name, const char *value, int overwrite)
{
	const char *found = strstr(name, "_QRMI_");

	(void)sp;
	(void)overwrite;
	assert(name[0] != '\0' && strchr(name, '=') == NULL);
	assert(strlen(name) <= VARIABLE_MAX_BYTES && strlen(value) <= VALUE_MAX_BYTES);
	assert(strcmp(name, JOB_SELECTION) == 0 || found != NULL);
	assert(strcmp(name, JOB_SELECTION) != 0 || is_within_limits(value));
	assert(!starts_with(name, "SPANK_") && !starts_with(name, "SLURM_"));
	for (const char *at = value; *at != '\0'; at++)
		assert(!is_control(*at));
	control_bytes += strlen(name) + strlen(value);
	assert(control_bytes <= VARIABLES_MAX_BYTES + SELECTION_MAX_BYTES + sizeof JOB_SELECTION);
	return ESPANK_SUCCESS;
}

spank_err_t spank_job_control_unsetenv(spank_t sp, const char *name)
{
	(void)sp;
	(void)name;
	return ESPANK_SUCCESS;
}

static void post_opt(void)
{
	static char state[] = "--state-dir=/s";
	static char config[] = "/c";
	static char *arguments[] = {config, state};

	control_bytes = 0;
	slurm_spank_init_post_opt(NULL, 2, arguments);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const spank_context_t contexts[] = {S_CTX_ALLOCATOR, S_CTX_LOCAL, S_CTX_REMOTE, S_CTX_LOCAL};
	static char *own[ENTRIES_MAX + 1];
	char *texts[ENTRIES_MAX];
	size_t count = 0;
	size_t owned = 0;

	if (size < 2)
		return 0;
	lines = calls_of_post_opt = 0;
	srun_in_job = false;
	context = contexts[data[0] & 3];
	fuzzed_job_id = 7U + ((data[0] >> 2) & 3U);
	for (size_t at = 1; at < size && count < ENTRIES_MAX;) {
		const uint8_t *end = memchr(data + at, 0xff, size - at);
		const size_t length = (end == NULL ? size : (size_t)(end - data)) - at;

		texts[count] = malloc(length + 1);
		memcpy(texts[count], data + at, length);
		texts[count][length] = '\0';
		count++;
		at += length + 1;
	}
	for (size_t i = 1; i < count; i++) {
		if (texts[i][0] == '!' || strchr(texts[i], '=') == NULL || texts[i][0] == '=')
			continue;
		if (context == S_CTX_REMOTE)
			step[steps++] = strdup(texts[i]);
		else
			own[owned++] = texts[i];
	}
	own[owned] = NULL;
	clearenv();
	for (size_t i = 0; i < owned; i++)
		putenv(own[i]);
	slurm_spank_init(NULL, 0, NULL);
	if (registered->cb(0, texts[0], context == S_CTX_REMOTE) == 0)
		post_opt();
	for (size_t i = 1; i < count; i++)
		if (texts[i][0] == '!' && registered->cb(0, texts[i] + 1, context == S_CTX_REMOTE) == 0)
			post_opt();
	slurm_spank_exit(NULL, 0, NULL);
	clearenv();
	selection_clear(&of_step);
	while (steps > 0)
		free(step[--steps]);
	while (count > 0)
		free(texts[--count]);
	return 0;
}

#ifdef STANDALONE
int main(int argc, char *argv[])
{
	static uint8_t data[1 << 20];

	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");
		uint8_t *copy;
		size_t size;

		if (file == NULL)
			return 2;
		size = fread(data, 1, sizeof data, file);
		fclose(file);
		copy = malloc(size + 1); /* exactly sized, so that valgrind sees an overread */
		memcpy(copy, data, size);
		LLVMFuzzerTestOneInput(copy, size);
		free(copy);
	}
	return 0;
}
#endif
