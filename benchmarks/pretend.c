/* A processor that pretends to be another one, for benchmark_bytes.ipynb: cc -O2 -shared -fPIC -o pretend.so pretend.c
 * LD_PRELOAD=pretend.so PRETEND=intel (with AVX2), amd (with AVX2) or amd512. Linux on x86-64 whose processor can make
 * CPUID fail (cpuid_fault in /proc/cpuinfo). */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
enum { EAX, EBX, ECX, EDX };

static int amd, avx512;

static void clear(unsigned *word, const int *bits) { for (; *bits >= 0; bits++) *word &= ~(1u << *bits); }

/* What is new since AVX2, by register of leaf 7: AVX-512 and its extensions, AMX. */
static const int NEW_B[] = {16, 17, 21, 26, 27, 28, 30, 31, -1}, NEW_C[] = {1, 6, 11, 12, 14, -1},
                 NEW_D[] = {2, 3, 8, 22, 23, 24, 25, -1}, NEW_A1[] = {4, 5, -1}, AMX_D[] = {22, 23, 24, 25, -1};

/* Caches of a Zen 2: kind and level, line and ways, sets - 1, flags. */
static const unsigned CACHES[4][4] = {
    {0x121, 0x01c0003f, 63, 0}, {0x122, 0x01c0003f, 63, 0}, {0x143, 0x01c0003f, 1023, 2}, {0x163, 0x03c0003f, 16383, 1}};

static void answer(unsigned leaf, unsigned part, unsigned *r) {
  if (leaf == 0 && amd) { memcpy(&r[EBX], "Auth", 4); memcpy(&r[EDX], "enti", 4); memcpy(&r[ECX], "cAMD", 4); }
  if (leaf == 1) r[EAX] = !amd ? 0x000306F2 : avx512 ? 0x00A10F11 : 0x00830F10;      /* Haswell, Zen 4, Zen 2 */
  if (leaf == 7 && part == 0 && !avx512) { clear(&r[EBX], NEW_B); clear(&r[ECX], NEW_C); clear(&r[EDX], NEW_D); }
  if (leaf == 7 && part == 1 && !avx512) clear(&r[EAX], NEW_A1);
  if (leaf == 7 && part == 0 && avx512) clear(&r[EDX], AMX_D);
  if (leaf == 4 && part == 2 && !amd) { r[EBX] = 0x01c0003f; r[ECX] = 511; }          /* second-level cache: 256 KiB */
  if (leaf == 4 && amd) memset(r, 0, 16);
  if (leaf == 0x80000000 && amd) r[EAX] = 0x8000001f;
  if (leaf == 0x80000001 && amd) r[ECX] |= 1u << 22;                                 /* leaf 0x8000001d is there */
  if (leaf == 0x8000001d && amd) { memset(r, 0, 16); if (part < 4) memcpy(r, CACHES[part], 16); }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)g[REG_RIP];
  if (code[0] != 0x0f || code[1] != 0xa2) { signal(SIGSEGV, SIG_DFL); return; }      /* not CPUID: a fault of the program */
  unsigned leaf = g[REG_RAX], part = g[REG_RCX], r[4];
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __asm__ volatile("cpuid" : "=a"(r[EAX]), "=b"(r[EBX]), "=c"(r[ECX]), "=d"(r[EDX]) : "a"(leaf), "c"(part));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  answer(leaf, part, r);
  g[REG_RAX] = r[EAX]; g[REG_RBX] = r[EBX]; g[REG_RCX] = r[ECX]; g[REG_RDX] = r[EDX];
  g[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
  const char *kind = getenv("PRETEND");
  if (!kind) return;
  amd = !strncmp(kind, "amd", 3); avx512 = !strcmp(kind, "amd512");
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, NULL);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) abort();                           /* this processor cannot pretend */
}
