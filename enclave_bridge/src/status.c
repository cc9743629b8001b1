#include "enclave_bridge.h"

static const struct {
  int number;
  const char *name;
  const char *text;
} statuses[] = {
#define X(name, number, text) {number, #name, text},
#include "eb_status.def"
#undef X
};

size_t eb_status_count(void) { return sizeof statuses / sizeof statuses[0]; }

int eb_status_at(size_t index) { return index < eb_status_count() ? statuses[index].number : -1; }

const char *eb_status_name(int status) {
  for (size_t i = 0; i < eb_status_count(); i++)
    if (statuses[i].number == status) return statuses[i].name;
  return "EB_ERR_UNKNOWN";
}

const char *eb_status_text(int status) {
  for (size_t i = 0; i < eb_status_count(); i++)
    if (statuses[i].number == status) return statuses[i].text;
  return "unknown status";
}
