// SPDX-License-Identifier: Apache-2.0
/* Two questions about text. */
#ifndef SPANK_QRMI_TEXT_H
#define SPANK_QRMI_TEXT_H

#include <stdbool.h>
#include <string.h>

static inline bool is_control(char c)
{
	const unsigned char byte = (unsigned char)c;

	return byte < 0x20 || byte == 0x7f;
}

static inline bool starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

#endif
