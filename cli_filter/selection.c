// SPDX-License-Identifier: Apache-2.0
#include "selection.h"

#include <string.h>

#include "text.h"

#define USE_COMMAS "; separate QPU names with commas, as in --qpu=ibm_quebec,ibm_sherbrooke"
#define ASK_FOR_FEWER "; ask for fewer QPUs in one job"

/* With one of these prefixes, or as a pattern, a term leaves the choice of a QPU to Prolog, which knows all QPUs. */
static const char *const choice_prefixes[] = { "any:", "least-busy:" };

/* Length in bytes of the UTF-8 character at text; 0 if it is malformed (RFC 3629, section 4). */
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

	/* The NUL that ends the text is not a continuation byte, so this never reads past it. */
	if (byte[1] < lowest || byte[1] > highest)
		return 0;
	for (size_t i = 2; i < length; i++)
		if (byte[i] < 0x80 || byte[i] > 0xbf)
			return 0;
	return length;
}

size_t selection_prefix(const char *term, size_t length)
{
	for (size_t i = 0; i < sizeof choice_prefixes / sizeof choice_prefixes[0]; i++) {
		const size_t prefix_length = strlen(choice_prefixes[i]);

		if (length > prefix_length && strncmp(term, choice_prefixes[i], prefix_length) == 0)
			return prefix_length;
	}
	return 0;
}

static bool is_choice(const char *term, size_t length)
{
	return selection_prefix(term, length) > 0 || memchr(term, '*', length) != NULL ||
	       memchr(term, '?', length) != NULL || memchr(term, '[', length) != NULL;
}

/* The same for a list of valid names. */
static const char *limit_fault(const char *text)
{
	struct {
		const char *at;
		size_t length;
	} terms[SELECTION_MAX_TERMS + 1];
	size_t count = 0;
	size_t choices = 0;

	for (const char *next; text != NULL; text = next) {
		const char *at = text + strspn(text, " ");
		const size_t length = selection_first(at, &next);
		size_t same = count;

		if (is_choice(at, length))
			choices++;
		else
			for (same = 0; same < count; same++)
				if (terms[same].length == length && memcmp(terms[same].at, at, length) == 0)
					break;
		if (same < count)
			continue;
		terms[count].at = at;
		terms[count].length = length;
		if (++count > SELECTION_MAX_TERMS)
			return "has more than 64 terms" ASK_FOR_FEWER;
		if (choices > SELECTION_MAX_CHOICES)
			return "has more than 8 choices (patterns, any: and least-busy:)" ASK_FOR_FEWER;
	}
	return NULL;
}

const char *selection_fault(const char *text)
{
	bool empty = true;
	size_t length;

	if (strlen(text) > SELECTION_MAX_BYTES)
		return "has more than 4096 bytes" ASK_FOR_FEWER;
	if (text[strspn(text, " ")] == '\0')
		return "names no QPU" USE_COMMAS;
	for (const char *at = text; *at != '\0'; at += length) {
		length = utf8_length(at);
		if (length == 0)
			return "is not valid UTF-8" USE_COMMAS;
		if (is_control(*at))
			return "contains a control character" USE_COMMAS;
		/* <name>_QRMI_... must be a valid name of an environment variable. */
		if (*at == '=')
			return "contains '='" USE_COMMAS;
		if (*at == ',') {
			if (empty)
				return "contains an empty name" USE_COMMAS;
			empty = true;
		} else if (*at != ' ') {
			empty = false;
		}
	}
	return empty ? "contains an empty name" USE_COMMAS : limit_fault(text);
}

size_t selection_first(const char *list, const char **next)
{
	size_t length = strcspn(list, ",");

	*next = list[length] == ',' ? list + length + 1 : NULL;
	while (length > 0 && list[length - 1] == ' ')
		length--;
	return length;
}

void selection_set(struct selection *selection, const char *text)
{
	char *out = selection->names;

	for (const char *at = text; at != NULL;) {
		const char *next;
		size_t length;

		at += strspn(at, " ");
		length = selection_first(at, &next);
		memcpy(out, at, length);
		out += length;
		if (next != NULL)
			*out++ = ',';
		at = next;
	}
	*out = '\0';
	selection->given = true;
}

void selection_clear(struct selection *selection)
{
	selection->given = false;
	selection->names[0] = '\0';
}
