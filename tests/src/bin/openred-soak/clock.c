/*
 * Steps the wall clock of one node's processes: preloaded by the soak (tests/src/bin/openred-soak) through /etc/ld.so.preload of a mount
 * namespace of its own, so that it reaches the children of a supervisor, whose environment is exact. The file that it maps before
 * the process confines itself holds the seconds to add; the soak writes them while the process runs. Only CLOCK_REALTIME is stepped, as a
 * hand at the machine's clock would; the monotonic clock goes on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int (*read_clock)(clockid_t, struct timespec *);
static const volatile long long *step;

__attribute__((constructor)) static void begin(void)
{
    read_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int file = open(CLOCK_FILE, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *place = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED)
        step = place;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = read_clock(clock, now);
    if (!failed && step && clock == CLOCK_REALTIME)
        now->tv_sec += *step;
    return failed;
}
