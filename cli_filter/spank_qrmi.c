// SPDX-License-Identifier: Apache-2.0
/*
 * spank_qrmi.so: registers --qpu with sbatch, salloc and srun, and carries the selection to Slurm's hooks.
 *
 *   allocator (sbatch, salloc)  --qpu is checked; the selection and the user's own <name>_QRMI_* variables go into the
 *   local (srun)                job-control environment, which Prolog and Epilog see with SPANK_ before each name
 *   remote (slurmstepd)         the step's selection goes into the step's environment as QRMI_SLURM_QPU, and with it
 *                               --state-dir as QRMI_SLURM_STATE_DIR; the ids of a task of a job array go into its
 *                               job's folder there, for the accounting: no hook is told them
 *   slurmd, job_script          nothing: all other work is done by Prolog, TaskProlog and Epilog
 *
 * There is neither slurm_spank_job_prolog nor slurm_spank_job_epilog: slurmd starts one more slurmstepd a job for a
 * plugin that has one (spank_has_prolog() in src/common/spank.c). slurm_spank_user_init and the task callbacks are left
 * out as well: init_post_opt runs once a step and already may write the step's environment.
 *
 * Plugin arguments are for the hooks; only --state-dir is read here. Of the others their number is logged: a proxy's
 * password may be among them (--env:NAME=VALUE). For the same reason variables are logged by name, never by value.
 *
 * "spank.c" in the comments is src/common/spank.c, called src/common/plugstack.c up to Slurm 22.05.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

/* The build hides every symbol (-fvisibility=hidden) but those that Slurm's plugin loader looks for. */
#pragma GCC visibility push(default)
SPANK_PLUGIN(spank_qrmi, 1)
extern spank_f slurm_spank_init;
extern spank_f slurm_spank_init_post_opt;
extern spank_f slurm_spank_exit;
#pragma GCC visibility pop

/* POSIX asks the program to declare it. */
extern char **environ;

/* Prefix of each log line. */
#define LOG "spank_qrmi"

/* Longest --qpu in bytes: 40 names of 100 bytes, and with Slurm's own copies far from what an environment may hold. */
#define SELECTION_MAX_BYTES 4096U

/* Longest value that is passed on, in bytes. env.c leaves a variable out of Prolog's environment, without a word, where
 * its value has 256 KiB (ENV_BUFSIZE); an API key, a token or a certificate has a few KiB. */
#define VALUE_MAX_BYTES 65536U

/* Longest name of a variable that is passed on, in bytes: env.c's _env_array_entry_splitter() has 256 with the NUL, and
 * Prolog's name is longer by "SPANK_". A longer one would be left out without a word. */
#define VARIABLE_MAX_BYTES (256U - sizeof "SPANK_")

/* Most that is passed on in all, in bytes. Prolog and Epilog get it in their environment, for which execve(2) has a
 * quarter of slurmd's stack limit, 2 MiB of the usual 8: with more of it neither can be started, which drains the node.
 * A user whose own stack limit is higher has room for more than that in his environment. */
#define VARIABLES_MAX_BYTES (1024U * 1024U)

/* What a variable takes there besides its name and value: "SPANK_", a NUL and a pointer. */
#define VARIABLE_COST_BYTES (sizeof "SPANK_" + sizeof(char *))

/* The job's selection in the job-control environment; Prolog and Epilog read it as SPANK_QRMI_QPU. */
#define JOB_SELECTION "QRMI_QPU"

/* The job-control environment in that of a job's script and of salloc's shell: sbatch and salloc, _set_spank_env(). */
#define JOB_CONTROL_IN_TASKS "SLURM_SPANK_"
#define JOB_SELECTION_IN_TASKS JOB_CONTROL_IN_TASKS JOB_SELECTION

/* The step's selection in the environment of its tasks; TaskProlog and the user's program read it. */
#define STEP_SELECTION "QRMI_SLURM_QPU"

/* Where the hooks keep their records, in the environment of a step that has a selection: TaskProlog begins as a shell,
 * which finds the job's exports by it without reading plugstack.conf. */
#define STATE_DIR "QRMI_SLURM_STATE_DIR"
#define STATE_DIR_OPTION "--state-dir="
#define STATE_DIR_DEFAULT "/var/spool/qrmi-slurm"

/* In a job's folder below it: the ids of its array and of the task, as in 10_2; record.py's JobFolder.array_ids(). */
#define ARRAY_FILE "array"

/* A cluster's name becomes a folder's, which context.py's _PATH_COMPONENT allows 255 bytes. */
#define CLUSTER_MAX_BYTES 255U
#define CLUSTER_BYTES "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"

/* In a step of a heterogeneous job: the id of the component's own job, under which its Prolog ran. SLURM_JOB_ID is the
 * first component's there (slurmstepd's src/slurmd/slurmstepd/task.c and src/common/env.c, het_job_id). */
#define STEP_JOB_ID "QRMI_SLURM_JOB_ID"

/* What each component of `srun --qpu=a ... : ...` asked for, a line for each, from srun to slurmstepd. It begins with
 * SLURM since `srun --export=NONE` drops the others (env.c, env_array_merge_slurm_spank()). */
#define HET_SELECTIONS "SLURM_QRMI_HET_QPU"

/* Room for that list in slurmstepd: eight of the longest, or 250 bytes for each of 128 components (slurm.h,
 * MAX_HET_JOB_COMPONENTS). A longer list is not read, and the option counts that Slurm has sent. */
#define HET_SELECTIONS_MAX_BYTES 32768U

/* The option as Slurm hands it on in the job-control environment: spank.c, _opt_env_name(). */
#define OPTION_IN_JOB_CONTROL "_SLURM_SPANK_OPTION_spank_qrmi_qpu"

/* The option as Slurm reads it from the environment of sbatch, salloc and srun: spank.c, spank_process_env_options(). */
#define OPTION_IN_ENVIRONMENT JOB_CONTROL_IN_TASKS OPTION_IN_JOB_CONTROL

/* A --qpu value that has passed the check, without the blanks around its commas. */
struct selection {
	bool given;
	char names[SELECTION_MAX_BYTES + 1];
};

/* The names of the variables that stand in the job-control environment for one component, each ended by a NUL. Names
 * only, since sbatch --export-file empties the environment between two components (env_unset_environment()). */
struct variables {
	char *names;
	size_t bytes;
	size_t cost_bytes; /* what they take in Prolog's environment */
};

/* What the user asked for in this component of the job, or slurmstepd was told for this step. */
static struct selection current;

/* What the command's environment brought: --qpu of the job in which this sbatch, salloc or srun is called. */
static struct selection inherited;

/* What is to be taken back before the next component. */
static struct variables forwarded;

/* Whether srun starts a step of a job that is there already; otherwise it submits one. */
static bool srun_in_job;

/* The selections that srun has read so far where it submits a heterogeneous job: the first component's here, all of them
 * in HET_SELECTIONS as soon as there is a second. */
static bool srun_has_component;
static struct selection srun_first;

/* How many lines of plugstack.conf load this file: Slurm loads it once and calls it for each of them. */
static unsigned int lines;
static unsigned int calls_of_post_opt;

static int spank_qrmi_option(int val, const char *optarg, int remote);

static struct spank_option option_qpu = {
	.name = (char *)"qpu",
	.arginfo = (char *)"names",
	.usage = (char *)"Comma-separated list of QPU resources to use.",
	.has_arg = 1,
	.val = 0,
	.cb = spank_qrmi_option,
};

/* ---- the selection ---- */

static bool is_control(char c)
{
	const unsigned char byte = (unsigned char)c;

	return byte < 0x20 || byte == 0x7f;
}

/* Length in bytes of the UTF-8 character at text, 0 where there is none (RFC 3629, section 4). */
static size_t utf8_length(const char *text)
{
	const unsigned char *byte = (const unsigned char *)text;
	unsigned char lowest = 0x80;
	unsigned char highest = 0xbf;
	size_t length;

	if (byte[0] < 0x80)
		return 1;
	if (byte[0] >= 0xc2 && byte[0] <= 0xdf)
		length = 2;
	else if (byte[0] >= 0xe0 && byte[0] <= 0xef)
		length = 3;
	else if (byte[0] >= 0xf0 && byte[0] <= 0xf4)
		length = 4;
	else
		return 0;

	if (byte[0] == 0xe0)
		lowest = 0xa0;
	else if (byte[0] == 0xed)
		highest = 0x9f;
	else if (byte[0] == 0xf0)
		lowest = 0x90;
	else if (byte[0] == 0xf4)
		highest = 0x8f;

	/* The text's NUL is no continuation byte, so nothing is read past it. */
	if (byte[1] < lowest || byte[1] > highest)
		return 0;
	for (size_t i = 2; i < length; i++)
		if (byte[i] < 0x80 || byte[i] > 0xbf)
			return 0;
	return length;
}

/*
 * Why text cannot be a list of QPU names, as the end of a sentence that begins with "--qpu"; NULL where it can be one.
 * Refused is what can never work: which names exist is known on the compute nodes only.
 */
static const char *selection_fault(const char *text)
{
	bool empty = true;
	size_t length;

	if (strlen(text) > SELECTION_MAX_BYTES)
		return "is longer than 4096 bytes";
	if (text[strspn(text, " ")] == '\0')
		return "names no QPU";
	for (const char *at = text; *at != '\0'; at += length) {
		length = utf8_length(at);
		if (length == 0)
			return "is not valid UTF-8";
		if (is_control(*at))
			return "has a control character in it";
		/* <name>_QRMI_... has to be the name of an environment variable. */
		if (*at == '=')
			return "has a name with '=' in it";
		if (*at == ',') {
			if (empty)
				return "has an empty name in its list";
			empty = true;
		} else if (*at != ' ') {
			empty = false;
		}
	}
	return empty ? "has an empty name in its list" : NULL;
}

/* The length of the name at the head of a list, without blanks at its end, and in *next what follows its comma. */
static size_t first_name(const char *list, const char **next)
{
	size_t length = strcspn(list, ",");

	*next = list[length] == ',' ? list + length + 1 : NULL;
	while (length > 0 && list[length - 1] == ' ')
		length--;
	return length;
}

/* Writes text, which has no fault, into the selection, without the blanks around its names. */
static void selection_set(struct selection *selection, const char *text)
{
	char *out = selection->names;

	for (const char *at = text; at != NULL;) {
		const char *next;
		size_t length;

		at += strspn(at, " ");
		length = first_name(at, &next);
		memcpy(out, at, length);
		out += length;
		if (next != NULL)
			*out++ = ',';
		at = next;
	}
	*out = '\0';
	selection->given = true;
}

static void selection_clear(struct selection *selection)
{
	selection->given = false;
	selection->names[0] = '\0';
}

/* ---- the user's own variables ---- */

static bool starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool is_word(const char *text, size_t length, const char *word)
{
	return length == strlen(word) && strncmp(text, word, length) == 0;
}

/* A term that leaves open which QPU it gets: one of these prefixes, or a pattern. The hooks know which QPUs there are
 * (qrmi_slurm/selection.py). */
static const char *const choice_prefixes[] = { "any:", "least-busy:" };

/* Whether a QPU of this name may be what a term of the selection comes to. After a prefix a type may stand, which fits
 * any name. */
static bool is_of_term(const char *name, size_t name_length, const char *term, size_t term_length)
{
	static char text[VARIABLE_MAX_BYTES + 1];
	static char pattern[SELECTION_MAX_BYTES + 1];
	bool is_prefixed = false;

	if (name_length == term_length && strncmp(name, term, term_length) == 0)
		return true;
	for (size_t i = 0; i < sizeof choice_prefixes / sizeof choice_prefixes[0]; i++) {
		const size_t length = strlen(choice_prefixes[i]);

		if (term_length > length && strncmp(term, choice_prefixes[i], length) == 0) {
			term += length;
			term_length -= length;
			is_prefixed = true;
			break;
		}
	}
	if (name_length > VARIABLE_MAX_BYTES || term_length > SELECTION_MAX_BYTES)
		return false;
	memcpy(text, name, name_length);
	text[name_length] = '\0';
	memcpy(pattern, term, term_length);
	pattern[term_length] = '\0';
	if (strpbrk(pattern, "*?[") == NULL)
		return is_prefixed;
	return fnmatch(pattern, text, FNM_NOESCAPE) == 0;
}

/* Whether a NAME=VALUE entry of the environment is the user's own variable for a QPU that the term may come to, to be
 * passed on to Prolog. */
static bool is_forwarded(const char *entry, const char *term, size_t term_length)
{
	static const char infix[] = "_QRMI_";
	const char *found = NULL;
	const char *rest;
	size_t length;

	/* valid_spank_job_env() in slurm_protocol_defs.c puts SPANK_ before a name unless it has that already, so such a
	 * variable could take the place of another one. SLURM_SPANK_* are an outer job's job-control variables. */
	if (starts_with(entry, "SPANK_") || starts_with(entry, "SLURM_"))
		return false;
	/* A QPU's name may hold the infix as well. */
	for (const char *at = strstr(entry, infix); found == NULL && at != NULL; at = strstr(at + 1, infix))
		if (at < entry + strcspn(entry, "=") && is_of_term(entry, (size_t)(at - entry), term, term_length))
			found = at;
	if (found == NULL)
		return false;
	rest = found + sizeof infix - 1;
	length = strcspn(rest, "=");
	if (length == 0 || rest[length] != '=')
		return false;
	/* Tokens, timeouts and sessions belong to a job: what is found here came from the job around this command, and
	 * with it QRMI would use that job's session, and close it. */
	return !starts_with(rest, "JOB_") && !is_word(rest, length, "IBM_QCS_SESSION_ID") &&
	       !is_word(rest, length, "IBM_QRS_SESSION_ID");
}

/* Why a NAME=VALUE entry cannot be passed on, as the end of a sentence that begins with its name, or NULL. */
static const char *variable_fault(const char *entry, size_t name_length)
{
	const char *value = entry + name_length + 1;

	if (name_length > VARIABLE_MAX_BYTES)
		return "has a name longer than 249 bytes";
	if (strlen(value) > VALUE_MAX_BYTES)
		return "has a value longer than 65536 bytes";
	/* The hooks print `export NAME=VALUE` lines: slurmstepd would take a line break for the next directive. */
	for (const char *at = value; *at != '\0'; at++)
		if (is_control(*at))
			return "has a control character in its value";
	return NULL;
}

#define TOO_MANY_VARIABLES "the environment variables that go with --qpu have more than 1 MiB together; unset some."

/* Whether each variable that belongs to the selection can be passed on; says which one cannot. */
static bool variables_are_sound(const char *selection)
{
	size_t cost_bytes = 0;

	for (const char *qpu = selection, *next; qpu != NULL; qpu = next) {
		const size_t qpu_length = first_name(qpu, &next);

		for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
			const size_t name_length = strcspn(*entry, "=");
			const char *fault;

			if (!is_forwarded(*entry, qpu, qpu_length))
				continue;
			cost_bytes += strlen(*entry) + VARIABLE_COST_BYTES;
			if (cost_bytes > VARIABLES_MAX_BYTES) {
				slurm_error(LOG ": " TOO_MANY_VARIABLES);
				return false;
			}
			fault = variable_fault(*entry, name_length);
			if (fault == NULL)
				continue;
			slurm_error(LOG ": the environment variable %.*s, which goes with --qpu=%.*s, %s; unset it or correct it.",
				    (int)name_length, *entry, (int)qpu_length, qpu, fault);
			return false;
		}
	}
	return true;
}

/* Notes a variable's name; false without memory. */
static bool variables_add(struct variables *variables, const char *name, size_t length)
{
	char *names = realloc(variables->names, variables->bytes + length + 1);

	if (names == NULL)
		return false;
	memcpy(names + variables->bytes, name, length);
	names[variables->bytes + length] = '\0';
	variables->names = names;
	variables->bytes += length + 1;
	return true;
}

static void variables_free(struct variables *variables)
{
	free(variables->names);
	variables->names = NULL;
	variables->bytes = 0;
	variables->cost_bytes = 0;
}

/* ---- allocator and local: sbatch, salloc, srun, as the user ---- */

/* Keeps what the environment says before Slurm and this plugin write into it. */
static void spank_qrmi_submit_init(void)
{
	const char *option = getenv(OPTION_IN_ENVIRONMENT);

	selection_clear(&current);
	selection_clear(&inherited);
	if (option != NULL && selection_fault(option) == NULL)
		selection_set(&inherited, option);
}

/* A new job: the marks of the job in which it is submitted are not its own. In the step's case (srun within a job) they
 * are, and stay. Slurm's own OPTION_IN_ENVIRONMENT stays in both: a nested sbatch inherits --qpu. */
static void spank_qrmi_allocator_init(void)
{
	unsetenv(JOB_SELECTION_IN_TASKS);
	unsetenv(STEP_SELECTION);
	spank_qrmi_submit_init();
}

static void spank_qrmi_local_init(void)
{
	/* srun takes the job of this variable for its own (env_vars[] in srun's opt.c); without it, srun submits a job. */
	srun_in_job = getenv("SLURM_JOB_ID") != NULL;
	srun_has_component = false;
	unsetenv(HET_SELECTIONS);
	if (srun_in_job)
		spank_qrmi_submit_init();
	else
		spank_qrmi_allocator_init();
}

/*
 * The only place where a value can be refused: what init_post_opt returns counts for `required` plugins only
 * (spank.c, _do_call_stack()). Slurm adds its own line, "Invalid --qpu argument".
 */
static int spank_qrmi_submit_option(const char *value)
{
	const char *fault;

	/*
	 * After each component sbatch and salloc put its options into their own environment (_set_spank_env()) and read
	 * them from there for the next one, to which they do not belong. spank_process_env_options() hands over what
	 * getenv() returned, so the address tells it from a --qpu of the command line or the script.
	 */
	if (value == getenv(OPTION_IN_ENVIRONMENT)) {
		if (inherited.given)
			value = inherited.names;
		else if (selection_fault(value) == NULL)
			return ESPANK_SUCCESS;
	}
	fault = selection_fault(value);
	if (fault != NULL) {
		slurm_error(LOG ": --qpu %s; give names separated by commas, as in --qpu=ibm_quebec,ibm_sherbrooke.", fault);
		return ESPANK_BAD_ARG;
	}
	selection_set(&current, value);
	/* A step takes the variables that its job was submitted with. */
	if (!srun_in_job && !variables_are_sound(current.names)) {
		selection_clear(&current);
		return ESPANK_BAD_ARG;
	}
	return ESPANK_SUCCESS;
}

/* Takes out of the job-control environment what the component before this one had put there. */
static void job_control_take_back(spank_t sp)
{
	for (size_t at = 0; at < forwarded.bytes; at += strlen(forwarded.names + at) + 1)
		spank_job_control_unsetenv(sp, forwarded.names + at);
	variables_free(&forwarded);
	spank_job_control_unsetenv(sp, JOB_SELECTION);
}

/* Puts one variable into the job-control environment, to be taken back before the next component. */
static int job_control_put(spank_t sp, const char *name, const char *value)
{
	const spank_err_t rc = spank_job_control_setenv(sp, name, value, 1);

	if (rc != ESPANK_SUCCESS)
		slurm_error(LOG ": cannot pass %s on to the job: %s", name, spank_strerror(rc));
	return (int)rc;
}

/*
 * Puts the user's own variables for each selected QPU into the job-control environment: those that stand in the
 * process environment under the prefix and their name.
 */
static int job_control_put_variables(spank_t sp, const char *selection, const char *prefix)
{
	for (const char *qpu = selection, *next; qpu != NULL; qpu = next) {
		const size_t qpu_length = first_name(qpu, &next);

		for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
			const char *variable = *entry + strlen(prefix);
			const size_t name_length = strcspn(*entry, "=") - strlen(prefix);
			const char *name;
			int rc;

			if (!starts_with(*entry, prefix) || !is_forwarded(variable, qpu, qpu_length))
				continue;
			if (variable_fault(variable, name_length) != NULL)
				continue;
			forwarded.cost_bytes += strlen(variable) + VARIABLE_COST_BYTES;
			if (forwarded.cost_bytes > VARIABLES_MAX_BYTES) {
				slurm_error(LOG ": " TOO_MANY_VARIABLES);
				return ENOMEM;
			}
			if (!variables_add(&forwarded, variable, name_length))
				return ENOMEM;
			name = forwarded.names + forwarded.bytes - name_length - 1;
			slurm_debug(LOG ": passing on %s", name);
			rc = job_control_put(sp, name, variable + name_length + 1);
			if (rc != ESPANK_SUCCESS)
				return rc;
		}
	}
	return ESPANK_SUCCESS;
}

/*
 * Once for each component of a heterogeneous job, all in one process: sbatch's and salloc's job-control environment is
 * one for all (opt.spank_job_env), so each component starts afresh.
 */
static int spank_qrmi_submit_init_post_opt(spank_t sp, const struct selection *job, const char *prefix)
{
	int rc;

	job_control_take_back(sp);
	if (!job->given) {
		/* Slurm never forgets an option that an earlier component had (spank.c, _spank_stack_set_remote_options_env()). */
		spank_job_control_unsetenv(sp, OPTION_IN_JOB_CONTROL);
		return ESPANK_SUCCESS;
	}
	rc = job_control_put(sp, JOB_SELECTION, job->names);
	if (rc == ESPANK_SUCCESS)
		rc = job_control_put_variables(sp, job->names, prefix);
	return rc;
}

static int spank_qrmi_allocator_init_post_opt(spank_t sp)
{
	const int rc = spank_qrmi_submit_init_post_opt(sp, &current, "");

	selection_clear(&current);
	return rc;
}

/*
 * Notes the component's selection for slurmstepd. Slurm cannot tell the components' options apart: it sends the last one
 * to the steps of all (spank.c, spank_set_remote_options()), and they share srun's environment.
 */
static int het_selections_add(const struct selection *selection)
{
	const char *before = getenv(HET_SELECTIONS);
	size_t size;
	char *all;
	int rc;

	if (!srun_has_component) {
		srun_has_component = true;
		srun_first = *selection;
		return ESPANK_SUCCESS;
	}
	if (before == NULL)
		before = srun_first.names;
	size = strlen(before) + strlen(selection->names) + sizeof "\n";
	all = malloc(size);
	if (all == NULL)
		return ENOMEM;
	snprintf(all, size, "%s\n%s", before, selection->names);
	rc = setenv(HET_SELECTIONS, all, 1);
	free(all);
	return rc == 0 ? ESPANK_SUCCESS : ENOMEM;
}

static int spank_qrmi_local_init_post_opt(spank_t sp)
{
	static struct selection job;
	const char *held;
	int rc;

	if (!srun_in_job) {
		rc = het_selections_add(&current);
		if (rc != ESPANK_SUCCESS)
			return rc;
		return spank_qrmi_allocator_init_post_opt(sp);
	}
	/* A step's launch request carries srun's job-control environment, and where PrologFlags has no Alloc it is what the
	 * job's Prolog sees at the first step on a node: what the job was submitted with, then, not the step's selection. */
	held = getenv(JOB_SELECTION_IN_TASKS);
	selection_clear(&job);
	if (held != NULL && selection_fault(held) == NULL)
		selection_set(&job, held);
	selection_clear(&current);
	return spank_qrmi_submit_init_post_opt(sp, &job, JOB_CONTROL_IN_TASKS);
}

/* ---- remote: slurmstepd, as root ---- */

static int spank_qrmi_remote_option(const char *value)
{
	/* The command has checked it: this is for a value from elsewhere. Slurm logs the refusal and starts the step. */
	if (selection_fault(value) != NULL)
		return ESPANK_BAD_ARG;
	selection_set(&current, value);
	return ESPANK_SUCCESS;
}

/*
 * The selection of this step's own component where srun has submitted a heterogeneous job, from HET_SELECTIONS. The
 * components of a job have consecutive ids (src/slurmctld/proc_req.c, _slurm_rpc_allocate_het_job()).
 */
static void het_selection(spank_t sp, uint32_t component)
{
	static char all[HET_SELECTIONS_MAX_BYTES];
	char *line = all;

	if (spank_getenv(sp, HET_SELECTIONS, all, (int)sizeof all) != ESPANK_SUCCESS)
		return;
	selection_clear(&current);
	for (; component > 0 && line != NULL; component--) {
		line = strchr(line, '\n');
		if (line != NULL)
			line++;
	}
	if (line == NULL)
		return;
	line[strcspn(line, "\n")] = '\0';
	if (selection_fault(line) == NULL)
		selection_set(&current, line);
}

/*
 * In a step of a heterogeneous job the tasks' SLURM_JOB_ID is the first component's: gives them their own job's id as
 * well, and the selection of their component.
 */
static void spank_qrmi_remote_het_component(spank_t sp)
{
	static char held[SELECTION_MAX_BYTES + 1];
	char text[sizeof "4294967295"];
	uint32_t job_id;
	uint32_t first_id;

	spank_unsetenv(sp, STEP_JOB_ID);
	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS)
		return;
	/* In a batch step it is set already; srun has it in its environment by then (srun_job.c). */
	if (spank_getenv(sp, "SLURM_JOB_ID", text, (int)sizeof text) != ESPANK_SUCCESS)
		return;
	first_id = (uint32_t)strtoul(text, NULL, 10);
	if (job_id == first_id) {
		het_selection(sp, 0);
		return;
	}
	if (job_id > first_id)
		het_selection(sp, job_id - first_id);
	/* srun in a job's script or in salloc's shell has inherited the first component's --qpu. */
	if (spank_getenv(sp, JOB_SELECTION_IN_TASKS, held, (int)sizeof held) == ESPANK_SUCCESS &&
	    strcmp(held, current.names) == 0)
		selection_clear(&current);
	snprintf(text, sizeof text, "%u", job_id);
	spank_setenv(sp, STEP_JOB_ID, text, 1);
}

/* What the plugin's line says of --state-dir. The hooks refuse a line that says it twice. */
static const char *state_dir(int ac, char *argv[])
{
	for (int i = 0; i < ac; i++)
		if (starts_with(argv[i], STATE_DIR_OPTION))
			return argv[i] + strlen(STATE_DIR_OPTION);
	return STATE_DIR_DEFAULT;
}

/*
 * Leaves the array's ids in the folder that Prolog has made for the job; where there is none, nothing was acquired. Only
 * a batch step's are slurmctld's own: of a step of srun they are read from the tasks' environment, which is the user's
 * (slurmstepd_job.c, stepd_step_rec_create()), whereas SLURM_CLUSTER_NAME of a batch step is overwritten (env.c,
 * env_array_for_batch_job()). Array jobs are batch jobs.
 */
static void spank_qrmi_remote_array(spank_t sp, const char *dir)
{
	static char path[4096];
	char cluster[CLUSTER_MAX_BYTES + 1];
	uint32_t step_id;
	uint32_t job_id;
	uint32_t array_id;
	uint32_t task_id;
	int length;
	int fd;

	if (spank_get_item(sp, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS || step_id != SLURM_BATCH_SCRIPT)
		return;
	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ARRAY_ID, &array_id) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ARRAY_TASK_ID, &task_id) != ESPANK_SUCCESS || array_id == 0 || array_id >= NO_VAL)
		return;
	if (spank_getenv(sp, "SLURM_CLUSTER_NAME", cluster, (int)sizeof cluster) != ESPANK_SUCCESS ||
	    cluster[0] == '.' || cluster[0] == '\0' || cluster[strspn(cluster, CLUSTER_BYTES)] != '\0')
		return;
	length = snprintf(path, sizeof path, "%s/%s/%u/" ARRAY_FILE, dir, cluster, job_id);
	if (length < 0 || (size_t)length >= sizeof path)
		return;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	dprintf(fd, "%u_%u\n", array_id, task_id);
	close(fd);
}

/* The step's environment may be written from here on, and all options are known (spank.c, spank_stack_post_opt()). */
static int spank_qrmi_remote_init_post_opt(spank_t sp, int ac, char *argv[])
{
	int rc;

	spank_qrmi_remote_het_component(sp);
	spank_unsetenv(sp, HET_SELECTIONS);
	if (!current.given) {
		spank_unsetenv(sp, STATE_DIR);
		return (int)spank_unsetenv(sp, STEP_SELECTION);
	}
	spank_qrmi_remote_array(sp, state_dir(ac, argv));
	rc = (int)spank_setenv(sp, STEP_SELECTION, current.names, 1);
	if (rc == ESPANK_SUCCESS)
		rc = (int)spank_setenv(sp, STATE_DIR, state_dir(ac, argv), 1);
	return rc;
}

/* ---- what Slurm calls ---- */

static int spank_qrmi_option(int val, const char *optarg, int remote)
{
	int rc;

	(void)val;
	if (optarg == NULL)
		optarg = "";
	rc = remote ? spank_qrmi_remote_option(optarg) : spank_qrmi_submit_option(optarg);
	if (rc == ESPANK_SUCCESS && current.given)
		slurm_debug(LOG ": --qpu=[%s]", current.names);
	return rc;
}

static void log_enter(const char *phase, spank_t sp, int argc)
{
	slurm_debug(LOG "(%d, %u): -> %s argc=%d remote=%d", (int)getpid(), (unsigned int)getuid(), phase, argc,
		    spank_remote(sp));
}

static void log_leave(const char *phase, int rc)
{
	slurm_debug(LOG "(%d, %u): <- %s rc=%d", (int)getpid(), (unsigned int)getuid(), phase, rc);
}

int slurm_spank_init(spank_t sp, int ac, char *argv[])
{
	int rc;

	(void)argv;
	switch (spank_context()) {
	case S_CTX_ALLOCATOR:
		log_enter("slurm_spank_init", sp, ac);
		spank_qrmi_allocator_init();
		break;
	case S_CTX_LOCAL:
		log_enter("slurm_spank_init", sp, ac);
		spank_qrmi_local_init();
		break;
	case S_CTX_REMOTE:
		log_enter("slurm_spank_init", sp, ac);
		break;
	default:
		return ESPANK_SUCCESS;
	}
	if (++lines > 1) {
		slurm_error(LOG ": plugstack.conf has %u lines that load this plugin; the first one counts.", lines);
		return ESPANK_SUCCESS;
	}
	rc = (int)spank_option_register(sp, &option_qpu);
	log_leave("slurm_spank_init", rc);
	return rc;
}

int slurm_spank_init_post_opt(spank_t sp, int ac, char *argv[])
{
	int rc;

	(void)argv;
	/* Once for all lines: the second call would take back what the first one has put. */
	if (calls_of_post_opt++ % (lines > 0 ? lines : 1) != 0)
		return ESPANK_SUCCESS;
	log_enter("slurm_spank_init_post_opt", sp, ac);
	switch (spank_context()) {
	case S_CTX_ALLOCATOR:
		rc = spank_qrmi_allocator_init_post_opt(sp);
		break;
	case S_CTX_LOCAL:
		rc = spank_qrmi_local_init_post_opt(sp);
		break;
	case S_CTX_REMOTE:
		rc = spank_qrmi_remote_init_post_opt(sp, ac, argv);
		break;
	default:
		rc = ESPANK_SUCCESS;
		break;
	}
	log_leave("slurm_spank_init_post_opt", rc);
	return rc;
}

int slurm_spank_exit(spank_t sp, int ac, char *argv[])
{
	(void)sp;
	(void)ac;
	(void)argv;
	variables_free(&forwarded);
	return ESPANK_SUCCESS;
}
