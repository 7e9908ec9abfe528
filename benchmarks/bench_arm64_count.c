/* A TCG plugin of qemu-user (plugin API 1, QEMU 4.2 to 7.2 and later with the old name of its callback) that counts executed guest
   instructions of all threads, and tells the count whenever the guest calls close(-MARK - n): a line "n count" on standard error.
   Declarations are our own: Debian ships none of them. Build: gcc -shared -fPIC -O2 -o count.so bench_arm64_count.c */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned int, void *), int, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t,
                                                                     uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

EXPORT int qemu_plugin_version = 1;

enum { THREADS = 256, CLOSE = 57, MARK = 1000000, MARKS = 100000, NO_REGISTERS = 0 };
/* A line of cache for each thread: nobody else writes there. Numbers of threads that ended are given again, counts stay. */
static struct { uint64_t count; char rest[56]; } threads[THREADS] __attribute__((aligned(64)));

static void executed(unsigned int thread, void *instructions)
{
    threads[thread % THREADS].count += (uint64_t)(uintptr_t)instructions;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned int thread, int64_t number, uint64_t file, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)thread, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    int64_t mark = -(int64_t)(int32_t)file - MARK;
    if (number != CLOSE || mark < 0 || mark >= MARKS) {
        return;
    }
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++) {
        sum += threads[i].count;
    }
    fprintf(stderr, "mark %" PRId64 " %" PRIu64 "\n", mark, sum);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
