// SPDX-License-Identifier: Apache-2.0
/*
 * A fake Slurm with only the SPANK interface: it loads a plugin, calls it as the commands on standard input say, and
 * prints what the plugin did. With it the tests drive the plugin in every context without a cluster.
 *
 *   context NAME      allocator, local, remote, slurmd or job_script; the first command
 *   init              slurm_spank_init
 *   option HEX        --qpu=<the bytes>, from the command line or the script, or in slurmd's launch request
 *   env_option        --qpu from the environment, as spank_process_env_options() does
 *   post_opt          slurm_spank_init_post_opt, after what spank_init_post_opt() does before it
 *   set_spank_env     job-control variables into the process environment, as sbatch and salloc do
 *   new_component     empties the job-control environment, as srun does before each component
 *   clear_environ     empties the process environment, as sbatch --export-file does after each component
 *   fail_setenv       the job-control environment accepts nothing from here on
 *   fail_register     Slurm takes no option from here on
 *   job_id N          S_JOB_ID for the plugin
 *   array N N         S_JOB_ARRAY_ID and S_JOB_ARRAY_TASK_ID for the plugin
 *   batch_step        the step is that of a batch script
 *   state_dir DIR     --state-dir=DIR at the end of the plugin's line
 *   job_env HEX       NAME=VALUE into the step's environment
 *   slurm_conf PATH   SLURM_CONF in the environment of slurmstepd
 *   version           prints the plugin's version
 *   dump              prints the job-control, step and process environment
 *   exit              slurm_spank_exit
 *
 * Each line of output is a word and a text, with \n for line breaks in the text. Access rules are those of Slurm's
 * src/common/spank.c.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

#define OPTION "_SLURM_SPANK_OPTION_spank_qrmi_qpu"
#define TABLE_SIZE 256

extern char **environ;

struct spank_handle {
	bool in_init;
};

struct table {
	char *entry[TABLE_SIZE];
	size_t count;
};

static spank_context_t context;
static struct spank_handle handle;
static struct table job_control;
static struct table step;
static struct spank_option *registered;
static bool register_fails;
static uint32_t job_id;
static uint32_t step_id;
static uint32_t array_id;
static uint32_t array_task_id = NO_VAL;
/* What follows the path in plugstack.conf. */
static char *arguments[4] = {"/etc/slurm/qrmi_config.json", "--env:https_proxy=http://u:PROXYSECRET@p:1"};
static int arguments_count = 2;
static bool setenv_fails;
static char *found; /* the option's value, which Slurm never clears either */

static void say(const char *word, const char *text)
{
	printf("%s ", word);
	for (; *text != '\0'; text++) {
		if (*text == '\n')
			fputs("\\n", stdout);
		else
			putchar(*text);
	}
	putchar('\n');
	fflush(stdout);
}

static size_t table_find(const struct table *table, const char *name)
{
	const size_t length = strlen(name);

	for (size_t i = 0; i < table->count; i++)
		if (strncmp(table->entry[i], name, length) == 0 && table->entry[i][length] == '=')
			return i;
	return table->count;
}

static void table_unset(struct table *table, const char *name)
{
	const size_t at = table_find(table, name);

	if (at == table->count)
		return;
	free(table->entry[at]);
	table->entry[at] = table->entry[--table->count];
}

static void table_set(struct table *table, const char *name, const char *value)
{
	table_unset(table, name);
	if (table->count == TABLE_SIZE || asprintf(&table->entry[table->count], "%s=%s", name, value) < 0)
		abort();
	table->count++;
}

static void table_clear(struct table *table)
{
	while (table->count > 0)
		free(table->entry[--table->count]);
}

static void log_line(const char *word, const char *format, va_list arguments)
{
	char *text;

	if (vasprintf(&text, format, arguments) < 0)
		abort();
	say(word, text);
	free(text);
}

#define LOGGER(function, word)                         \
	void function(const char *format, ...)         \
	{                                              \
		va_list arguments;                     \
		va_start(arguments, format);           \
		log_line(word, format, arguments);     \
		va_end(arguments);                     \
	}
LOGGER(slurm_error, "error")
LOGGER(slurm_info, "info")
LOGGER(slurm_verbose, "verbose")
LOGGER(slurm_debug, "debug")
LOGGER(slurm_debug2, "debug2")
LOGGER(slurm_debug3, "debug3")
LOGGER(slurm_spank_log, "error")

const char *spank_strerror(spank_err_t err)
{
	(void)err;
	return "fake error";
}

/* The number of the release is in the environment, since the plugin asks when it is loaded. */
long slurm_api_version(void)
{
	const char *number = getenv("FAKE_API_VERSION");

	return (number != NULL ? atol(number) : 38) << 16;
}

spank_context_t spank_context(void)
{
	return context;
}

int spank_remote(spank_t sp)
{
	(void)sp;
	return context == S_CTX_REMOTE;
}

spank_err_t spank_option_register(spank_t sp, struct spank_option *option)
{
	if (register_fails || !sp->in_init || option->usage == NULL)
		return ESPANK_BAD_ARG;
	registered = option;
	printf("registered --%s=%s %s\n", option->name, option->arginfo, option->usage);
	return ESPANK_SUCCESS;
}

spank_err_t spank_get_item(spank_t sp, spank_item_t item, ...)
{
	va_list arguments;

	(void)sp;
	if (context != S_CTX_REMOTE ||
	    (item != S_JOB_ID && item != S_JOB_STEPID && item != S_JOB_ARRAY_ID && item != S_JOB_ARRAY_TASK_ID))
		return ESPANK_NOT_AVAIL;
	va_start(arguments, item);
	*va_arg(arguments, uint32_t *) = item == S_JOB_ID	  ? job_id
					 : item == S_JOB_STEPID	  ? step_id
					 : item == S_JOB_ARRAY_ID ? array_id
								  : array_task_id;
	va_end(arguments);
	return ESPANK_SUCCESS;
}

spank_err_t spank_getenv(spank_t sp, const char *name, char *buffer, int size)
{
	const size_t at = table_find(&step, name);
	const char *value;

	(void)sp;
	if (context != S_CTX_REMOTE)
		return ESPANK_NOT_REMOTE;
	if (at == step.count)
		return ESPANK_ENV_NOEXIST;
	value = step.entry[at] + strlen(name) + 1;
	snprintf(buffer, (size_t)size, "%s", value);
	return strlen(value) >= (size_t)size ? ESPANK_NOSPACE : ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t sp, const char *name, const char *value, int overwrite)
{
	(void)sp;
	(void)overwrite;
	if (context != S_CTX_REMOTE)
		return ESPANK_NOT_REMOTE;
	table_set(&step, name, value);
	return ESPANK_SUCCESS;
}

spank_err_t spank_unsetenv(spank_t sp, const char *name)
{
	(void)sp;
	if (context != S_CTX_REMOTE)
		return ESPANK_NOT_REMOTE;
	table_unset(&step, name);
	return ESPANK_SUCCESS;
}

spank_err_t spank_job_control_setenv(spank_t sp, const char *name, const char *value, int overwrite)
{
	(void)sp;
	(void)overwrite;
	if (context == S_CTX_REMOTE)
		return ESPANK_NOT_LOCAL;
	if (setenv_fails || name[0] == '\0' || strchr(name, '=') != NULL)
		return ESPANK_BAD_ARG;
	table_set(&job_control, name, value);
	return ESPANK_SUCCESS;
}

spank_err_t spank_job_control_unsetenv(spank_t sp, const char *name)
{
	(void)sp;
	if (context == S_CTX_REMOTE)
		return ESPANK_NOT_LOCAL;
	table_unset(&job_control, name);
	return ESPANK_SUCCESS;
}

/* ---- the commands ---- */

static char *from_hex(const char *hex)
{
	const size_t length = strlen(hex) / 2;
	char *text = calloc(length + 1, 1);

	if (text == NULL)
		abort();
	for (size_t i = 0; i < length; i++) {
		unsigned int byte;

		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			abort();
		text[i] = (char)byte;
	}
	return text;
}

static void result(const char *phase, int rc)
{
	printf("rc %s %d\n", phase, rc);
	fflush(stdout);
}

static void call_option(const char *value)
{
	const int rc = registered->cb(registered->val, value, context == S_CTX_REMOTE);

	result("option", rc);
	if (rc != 0)
		return;
	free(found);
	found = strdup(value);
}

static void call(void *plugin, const char *phase)
{
	char symbol[64];
	spank_f *function;

	snprintf(symbol, sizeof symbol, "slurm_spank_%s", phase);
	*(void **)&function = dlsym(plugin, symbol);
	if (function == NULL) {
		say("missing", symbol);
		return;
	}
	result(phase, function(&handle, arguments_count, arguments));
}

static void dump(void)
{
	for (size_t i = 0; i < job_control.count; i++)
		say("control", job_control.entry[i]);
	for (size_t i = 0; i < step.count; i++)
		say("step", step.entry[i]);
	for (char **entry = environ; entry != NULL && *entry != NULL; entry++)
		say("environ", *entry);
}

static spank_context_t context_named(const char *name)
{
	if (strcmp(name, "allocator") == 0)
		return S_CTX_ALLOCATOR;
	if (strcmp(name, "local") == 0)
		return S_CTX_LOCAL;
	if (strcmp(name, "remote") == 0)
		return S_CTX_REMOTE;
	if (strcmp(name, "slurmd") == 0)
		return S_CTX_SLURMD;
	if (strcmp(name, "job_script") == 0)
		return S_CTX_JOB_SCRIPT;
	abort();
}

static void run(void *plugin, const char *word, const char *argument)
{
	if (strcmp(word, "context") == 0) {
		context = context_named(argument);
	} else if (strcmp(word, "init") == 0) {
		handle.in_init = true;
		call(plugin, "init");
		handle.in_init = false;
	} else if (strcmp(word, "option") == 0) {
		char *value = from_hex(argument);

		call_option(value);
		free(value);
	} else if (strcmp(word, "env_option") == 0) {
		const char *value = getenv("SLURM_SPANK_" OPTION);

		if (value != NULL)
			call_option(value);
	} else if (strcmp(word, "post_opt") == 0) {
		if (found != NULL && context != S_CTX_REMOTE) {
			setenv(OPTION, found, 1);
			table_set(&job_control, OPTION, found);
		}
		call(plugin, "init_post_opt");
	} else if (strcmp(word, "set_spank_env") == 0) {
		for (size_t i = 0; i < job_control.count; i++) {
			char *name;
			char *value;

			if (asprintf(&name, "SLURM_SPANK_%s", job_control.entry[i]) < 0)
				abort();
			value = strchr(name, '=');
			*value++ = '\0';
			setenv(name, value, 1);
			free(name);
		}
	} else if (strcmp(word, "new_component") == 0) {
		table_clear(&job_control);
	} else if (strcmp(word, "clear_environ") == 0) {
		clearenv();
	} else if (strcmp(word, "fail_setenv") == 0) {
		setenv_fails = true;
	} else if (strcmp(word, "fail_register") == 0) {
		register_fails = true;
	} else if (strcmp(word, "array") == 0) {
		if (sscanf(argument, "%u %u", &array_id, &array_task_id) != 2)
			abort();
	} else if (strcmp(word, "batch_step") == 0) {
		step_id = SLURM_BATCH_SCRIPT;
	} else if (strcmp(word, "job_id") == 0) {
		job_id = (uint32_t)strtoul(argument, NULL, 10);
	} else if (strcmp(word, "state_dir") == 0) {
		static char state_dir[4096];

		snprintf(state_dir, sizeof state_dir, "--state-dir=%s", argument);
		arguments[arguments_count++] = state_dir;
	} else if (strcmp(word, "job_env") == 0) {
		char *entry = from_hex(argument);
		char *value = strchr(entry, '=');

		*value++ = '\0';
		table_set(&step, entry, value);
		free(entry);
	} else if (strcmp(word, "slurm_conf") == 0) {
		setenv("SLURM_CONF", argument, 1);
	} else if (strcmp(word, "version") == 0) {
		const unsigned int *version = dlsym(plugin, "plugin_version");

		printf("version %x\n", version != NULL ? *version : 0);
	} else if (strcmp(word, "dump") == 0) {
		dump();
	} else if (strcmp(word, "exit") == 0) {
		call(plugin, "exit");
	} else {
		abort();
	}
}

int main(int argc, char **argv)
{
	char *line = NULL;
	size_t size = 0;
	void *plugin;

	if (argc != 2)
		return 2;
	plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (plugin == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
	while (getline(&line, &size, stdin) > 0) {
		char *argument;

		line[strcspn(line, "\n")] = '\0';
		argument = strchr(line, ' ');
		if (argument != NULL)
			*argument++ = '\0';
		run(plugin, line, argument != NULL ? argument : "");
	}
	free(line);
	free(found);
	table_clear(&job_control);
	table_clear(&step);
	return dlclose(plugin) == 0 ? 0 : 2;
}
