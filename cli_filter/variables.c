// SPDX-License-Identifier: Apache-2.0
#include "variables.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slurm/spank.h>

#include "names.h"
#include "selection.h"
#include "text.h"

/* POSIX leaves the declaration to the program. */
extern char **environ;

#define INFIX "_QRMI_"

/* A fingerprint is the NAME=VALUE entry as a number in base 256, modulo the largest prime below 2^56, in 14 hexadecimal
 * digits. It is no secret: whoever sees it sees the value as well. The hooks have the same rule (state/exports.py). */
#define FINGERPRINT_PRIME (((uint64_t)1 << 56) - 5)
#define FINGERPRINT_DIGITS 14

/* Whether the job around this command was given this very value by the site. The site may have another by now. */
static bool is_given(const char *entry)
{
	const char *given = getenv(GIVEN);
	char text[FINGERPRINT_DIGITS + 1];
	uint64_t fingerprint = 0;

	if (given == NULL)
		return false;
	for (const char *at = entry; *at != '\0'; at++)
		fingerprint = (fingerprint << 8 | (unsigned char)*at) % FINGERPRINT_PRIME;
	snprintf(text, sizeof text, "%0*" PRIx64, FINGERPRINT_DIGITS, fingerprint);
	return strstr(given, text) != NULL;
}

static bool is_word(const char *text, size_t length, const char *word)
{
	return length == strlen(word) && strncmp(text, word, length) == 0;
}

/* Whether Prolog may choose a QPU of this name for a term. A type may follow a prefix; a QPU of any name may have it. */
static bool is_of_term(const char *name, size_t name_length, const char *term, size_t term_length)
{
	static char text[VARIABLE_MAX_BYTES + 1];
	static char pattern[SELECTION_MAX_BYTES + 1];
	const size_t prefix_length = selection_prefix(term, term_length);

	if (name_length == term_length && strncmp(name, term, term_length) == 0)
		return true;
	term += prefix_length;
	term_length -= prefix_length;
	if (name_length > VARIABLE_MAX_BYTES || term_length > SELECTION_MAX_BYTES)
		return false;
	memcpy(text, name, name_length);
	text[name_length] = '\0';
	memcpy(pattern, term, term_length);
	pattern[term_length] = '\0';
	if (strpbrk(pattern, "*?[") == NULL)
		return prefix_length > 0;
	return fnmatch(pattern, text, FNM_NOESCAPE) == 0;
}

/* Whether a user may set what follows a QPU's name and _QRMI_. Tokens, timeouts and sessions come from the job around this
 * command: QRMI would use, and then close, that job's session. */
static bool is_users_own(const char *rest)
{
	const size_t length = strcspn(rest, "=");

	return length > 0 && rest[length] == '=' && !starts_with(rest, "JOB_") &&
	       !is_word(rest, length, "IBM_QCS_SESSION_ID") && !is_word(rest, length, "IBM_QRS_SESSION_ID");
}

bool variable_is_forwarded(const char *entry, const char *term, size_t term_length)
{
	/* Slurm adds SPANK_ to names that do not start with it (valid_spank_job_env() in slurm_protocol_defs.c), so a name
	 * that does could replace another variable. SLURM_SPANK_* belong to the job around this command. */
	if (starts_with(entry, "SPANK_") || starts_with(entry, "SLURM_"))
		return false;
	/* A QPU's name may contain the infix too: Prolog knows the names. */
	for (const char *at = strstr(entry, INFIX); at != NULL && at < entry + strcspn(entry, "="); at = strstr(at + 1, INFIX))
		if (is_of_term(entry, (size_t)(at - entry), term, term_length) && is_users_own(at + sizeof INFIX - 1))
			return !is_given(entry);
	return false;
}

bool variable_is_qpus(const char *entry)
{
	const char *infix = strstr(entry, INFIX);

	return infix != NULL && infix < entry + strcspn(entry, "=");
}

const char *variable_fault(const char *entry, size_t name_length)
{
	const char *value = entry + name_length + 1;

	if (name_length > VARIABLE_MAX_BYTES)
		return "its name is longer than 249 bytes";
	if (strlen(value) > VALUE_MAX_BYTES)
		return "its value is longer than 65536 bytes";
	/* TaskProlog prints `export NAME=VALUE` lines: slurmstepd would read a line break as the next directive. */
	for (const char *at = value; *at != '\0'; at++)
		if (is_control(*at))
			return "its value contains a control character";
	return NULL;
}

bool variables_are_sound(const char *selection)
{
	size_t cost_bytes = 0;

	for (const char *qpu = selection, *next; qpu != NULL; qpu = next) {
		const size_t qpu_length = selection_first(qpu, &next);

		for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
			const size_t name_length = strcspn(*entry, "=");
			const char *fault;

			if (!variable_is_forwarded(*entry, qpu, qpu_length))
				continue;
			cost_bytes += strlen(*entry) + VARIABLE_COST_BYTES;
			if (cost_bytes > VARIABLES_MAX_BYTES) {
				slurm_error(LOG ": " TOO_MANY_VARIABLES);
				return false;
			}
			fault = variable_fault(*entry, name_length);
			if (fault == NULL)
				continue;
			slurm_error(LOG ": cannot pass the environment variable %.*s to the job for --qpu=%.*s: %s; fix or "
				    "unset it.", (int)name_length, *entry, (int)qpu_length, qpu, fault);
			return false;
		}
	}
	return true;
}
