/* A preloaded stand-in for /sys/kernel/config/tsm/report, by Documentation/ABI/testing/configfs-tsm-report and
 * fs/configfs. Entries are real directories under $FAKE_TSM_ROOT, for stat; what is in their files is made here.
 *
 * Kept from the kernel: mkdir makes the attributes; each write counts up the generation; inblob is buffered and takes
 * effect on close, where an error is lost; text attributes take effect at write; reading outblob makes the report
 * when anything was written since, else gives the last one again; a blob's content is fixed at the first read of an
 * open file; rmdir works although the attributes are there. Lines of the script: "mkdir errno=N", "rmdir errno=N",
 * "write NAME errno=N", "read NAME errno=N", "lose inblob", "intrude" (somebody writes between two reads),
 * "flip outblob", "cut outblob". */
#define _GNU_SOURCE
#include "fake_snp_firmware.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_ENTRIES = 16, MAX_OPEN = 16, NAME_BYTES = 64, TABLE_MAX = 256 * 1024 };

struct entry {
    char name[NAME_BYTES];
    uint8_t inblob[USER_DATA_BYTES];
    size_t inblob_length;
    unsigned privlevel, generation, made_at;
    uint8_t report[REPORT_BYTES];
};

struct handle {
    int descriptor, loaded, writing;
    struct entry *entry;
    char attribute[NAME_BYTES];
    uint8_t buffer[USER_DATA_BYTES];
    size_t length;
};

static struct entry entries[MAX_ENTRIES];
static struct handle handles[MAX_OPEN];
static const char *const attributes[] = {"generation", "inblob",  "outblob",          "provider",
                                         "privlevel",  "auxblob", "privlevel_floor",  "service_provider"};
#define REAL(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

/* The path below the root, or NULL. */
static const char *below_root(const char *path)
{
    const char *root = getenv("FAKE_TSM_ROOT");
    size_t length = root ? strlen(root) : 0;

    return length && strncmp(path, root, length) == 0 && path[length] == '/' ? path + length + 1 : NULL;
}

static struct entry *find_entry(const char *name, size_t length)
{
    for (size_t at = 0; at < MAX_ENTRIES; at++)
        if (strlen(entries[at].name) == length && memcmp(entries[at].name, name, length) == 0)
            return &entries[at];
    return NULL;
}

static struct handle *find_handle(int descriptor)
{
    for (size_t at = 0; at < MAX_OPEN; at++)
        if (handles[at].entry && handles[at].descriptor == descriptor)
            return &handles[at];
    return NULL;
}

static int scripted(const char *operation, const char *attribute)
{
    char wanted[2 * NAME_BYTES];

    snprintf(wanted, sizeof wanted, "%s %s", operation, attribute);
    return (int)fake_number(fake_next(wanted), "errno=", 0);
}

static int fail(int number)
{
    errno = number;
    return -1;
}

static int is_hidden(const char *attribute)
{
    const char *hidden = getenv("FAKE_TSM_HIDDEN");

    return hidden && strstr(hidden, attribute) != NULL;
}

int mkdir(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t) = REAL(int, mkdir, const char *, mode_t);
    const char *name = below_root(path);
    struct entry *entry = NULL;
    char file[PATH_MAX];
    int number;

    if (!name)
        return real(path, mode);
    fake_note("mkdir");
    if ((number = scripted("mkdir", "")) != 0)
        return fail(number);
    if (find_entry(name, strlen(name)))
        return fail(EEXIST);
    for (size_t at = 0; at < MAX_ENTRIES && !entry; at++)
        if (!entries[at].name[0])
            entry = &entries[at];
    if (!entry || strlen(name) >= NAME_BYTES || real(path, mode) != 0)
        return fail(ENOMEM);
    memset(entry, 0, sizeof *entry);
    strcpy(entry->name, name);
    for (size_t at = 0; at < sizeof attributes / sizeof *attributes; at++) {
        if (is_hidden(attributes[at]))
            continue;
        snprintf(file, sizeof file, "%s/%s", path, attributes[at]);
        REAL(int, close, int)(REAL(int, open, const char *, int, ...)(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    return 0;
}

int rmdir(const char *path)
{
    int (*real)(const char *) = REAL(int, rmdir, const char *);
    const char *name = below_root(path);
    struct entry *entry = name ? find_entry(name, strlen(name)) : NULL;
    char file[PATH_MAX];
    int number;

    if (!entry)
        return real(path);
    if ((number = scripted("rmdir", "")) != 0)
        return fail(number);
    fake_note("rmdir");
    for (size_t at = 0; at < sizeof attributes / sizeof *attributes; at++) {
        snprintf(file, sizeof file, "%s/%s", path, attributes[at]);
        unlink(file);
    }
    memset(entry, 0, sizeof *entry);
    return real(path);
}

static int is_write_only(const char *attribute)
{
    return !strcmp(attribute, "inblob") || !strcmp(attribute, "privlevel") || !strcmp(attribute, "service_provider");
}

static int open_attribute(const char *path, int flags)
{
    const char *name = below_root(path), *slash = name ? strchr(name, '/') : NULL;
    struct entry *entry = slash ? find_entry(name, (size_t)(slash - name)) : NULL;
    struct handle *handle = NULL;
    int writing = (flags & O_ACCMODE) == O_WRONLY;

    if (!entry)
        return -2;
    if (access(path, F_OK) != 0)
        return fail(ENOENT);
    /* Written or read, never both: as the kernel's modes 0200 and 0400. */
    if (writing != is_write_only(slash + 1))
        return fail(EACCES);
    for (size_t at = 0; at < MAX_OPEN && !handle; at++)
        if (!handles[at].entry)
            handle = &handles[at];
    if (!handle)
        return fail(EMFILE);
    memset(handle, 0, sizeof *handle);
    handle->entry = entry;
    handle->writing = writing;
    handle->descriptor = memfd_create("tsm", MFD_CLOEXEC);
    snprintf(handle->attribute, sizeof handle->attribute, "%s", slash + 1);
    return handle->descriptor;
}

#define INTERPOSE_OPEN(name)                                                                                           \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list arguments;                                                                                             \
        int mode, opened = open_attribute(path, flags);                                                                \
                                                                                                                       \
        va_start(arguments, flags);                                                                                    \
        mode = va_arg(arguments, int);                                                                                 \
        va_end(arguments);                                                                                             \
        return opened != -2 ? opened : REAL(int, name, const char *, int, ...)(path, flags, mode);                     \
    }
INTERPOSE_OPEN(open)
INTERPOSE_OPEN(open64)

ssize_t write(int descriptor, const void *data, size_t size)
{
    struct handle *handle = find_handle(descriptor);
    char text[NAME_BYTES] = "";
    int number;

    if (!handle)
        return REAL(ssize_t, write, int, const void *, size_t)(descriptor, data, size);
    if ((number = scripted("write", handle->attribute)) != 0)
        return fail(number);
    if (strcmp(handle->attribute, "inblob") == 0) {
        if (handle->length + size > sizeof handle->buffer)
            return fail(EFBIG);
        memcpy(handle->buffer + handle->length, data, size);
        handle->length += size;
        return (ssize_t)size;
    }
    memcpy(text, data, size < sizeof text ? size : sizeof text - 1);
    fake_note("write %s %s", handle->attribute, text);
    if (strcmp(handle->attribute, "privlevel") == 0) {
        unsigned long level = strtoul(text, NULL, 0);

        if (level > 3 || level < fake_setting("FAKE_SNP_VMPL", 0))
            return fail(EINVAL);
        handle->entry->privlevel = (unsigned)level;
    } else if (strcmp(text, "svsm") != 0) {
        return fail(EINVAL);
    }
    handle->entry->generation++;
    return (ssize_t)size;
}

static int make_report(struct entry *entry)
{
    if (!entry->inblob_length)
        return EINVAL;
    if (entry->made_at == entry->generation)
        return 0;
    if (entry->inblob_length != USER_DATA_BYTES)
        return EINVAL;
    if (fake_report(entry->inblob, entry->privlevel, entry->report) != 0)
        return EIO;
    entry->made_at = entry->generation;
    return 0;
}

/* Puts an attribute's content into the file behind its descriptor. Returns an errno. */
static int load(struct handle *handle)
{
    static uint8_t content[TABLE_MAX];
    struct entry *entry = handle->entry;
    size_t length = 0;
    int number = scripted("read", handle->attribute);

    if (number)
        return number;
    if (strcmp(handle->attribute, "outblob") == 0) {
        if ((number = make_report(entry)) != 0)
            return number;
        length = sizeof entry->report;
        memcpy(content, entry->report, length);
        if (*fake_next("flip outblob"))
            content[0x50] ^= 1;
        if (*fake_next("cut outblob"))
            length -= 1;
        if (*fake_next("intrude"))
            entry->generation++;
    } else if (strcmp(handle->attribute, "auxblob") == 0) {
        if ((number = make_report(entry)) != 0)
            return number;
        length = fake_load("table.bin", content, sizeof content);
    } else if (strcmp(handle->attribute, "generation") == 0) {
        const char *other = getenv("FAKE_TSM_GENERATION");

        length = other ? (size_t)sprintf((char *)content, "%s\n", other)
                       : (size_t)sprintf((char *)content, "%u\n", entry->generation);
    } else if (strcmp(handle->attribute, "provider") == 0) {
        const char *provider = getenv("FAKE_TSM_PROVIDER");

        length = (size_t)sprintf((char *)content, "%s\n", provider ? provider : "sev_guest");
    } else {
        length = (size_t)sprintf((char *)content, "%lu\n", fake_setting("FAKE_SNP_VMPL", 0));
    }
    if (pwrite(handle->descriptor, content, length, 0) != (ssize_t)length)
        return EIO;
    handle->loaded = 1;
    return 0;
}

ssize_t read(int descriptor, void *data, size_t size)
{
    struct handle *handle = find_handle(descriptor);
    int number;

    if (handle && !handle->loaded && (number = load(handle)) != 0)
        return fail(number);
    return REAL(ssize_t, read, int, void *, size_t)(descriptor, data, size);
}

int close(int descriptor)
{
    struct handle *handle = find_handle(descriptor);

    if (handle) {
        if (handle->writing && handle->length && !*fake_next("lose inblob")) {
            memcpy(handle->entry->inblob, handle->buffer, handle->length);
            handle->entry->inblob_length = handle->length;
            handle->entry->generation++;
        }
        memset(handle, 0, sizeof *handle);
    }
    return REAL(int, close, int)(descriptor);
}
