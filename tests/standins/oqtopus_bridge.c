/* A stand-in for liboqtopus_py_bridge.so, through which QRMI calls OQTOPUS's own Python client. The configuration
 * from QRMI selects the answer: "offline" or "broken" in the service's address. */
#include <stdlib.h>
#include <string.h>

static char *copy(const char *text)
{
	char *made = malloc(strlen(text) + 1);

	return made == NULL ? NULL : strcpy(made, text);
}

static int answer(const char *config, const char *online, const char *offline, char **out, char **err)
{
	if (strstr(config, "/broken") != NULL || strstr(config, "\"api_token\"") == NULL) {
		*err = copy("the service cannot be reached");
		return 1;
	}
	*out = copy(strstr(config, "/offline") != NULL ? offline : online);
	return 0;
}

#define DEVICE(status)                                                                                                \
	"{\"device_id\":\"q\",\"device_type\":\"QPU\",\"status\":\"" status "\",\"n_pending_jobs\":0,\"n_qubits\":4,"     \
	"\"basis_gates\":[],\"supported_instructions\":[],\"device_info\":\"{}\",\"description\":\"\"}"

int get_device_json(const char *device, const char *config, char **out, char **err);
int get_device_status(const char *device, const char *config, char **out, char **err);
void py_bridge_free_string(char *text);

int get_device_json(const char *device, const char *config, char **out, char **err)
{
	(void)device;
	return answer(config, DEVICE("available"), DEVICE("unavailable"), out, err);
}

int get_device_status(const char *device, const char *config, char **out, char **err)
{
	(void)device;
	return answer(config, "available", "unavailable", out, err);
}

void py_bridge_free_string(char *text)
{
	free(text);
}
