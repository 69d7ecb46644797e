/* Preloaded into User-Mode Linux where the processor has AMX. Linux 6.12's UML keeps the first 2,696 bytes of a process's
 * extended state (struct _xstate: all up to AVX-512 and PKRU, nothing of AMX) and hands those back, but the host takes the
 * whole state or none: PTRACE_SETREGSET fails with EFAULT (xstateregs_set in arch/x86/kernel/fpu/regset.c), and UML's
 * first process dies. So what UML leaves out is filled in from what the process has. */
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* UML is one thread; AMX makes it some 11 KiB */
static char whole[64 << 10];

/* ptrace(2), "C library/kernel differences": the library's function returns the word that was peeked at */
long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	long pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word, result = syscall(SYS_ptrace, request, pid, address, &word);
		return result < 0 ? result : word;
	}
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
		struct iovec *part = data, all = { whole, sizeof whole };
		long result = syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &all);
		if (result < 0)
			return result;
		if (part->iov_len < all.iov_len) {
			memcpy(whole, part->iov_base, part->iov_len);
			return syscall(SYS_ptrace, request, pid, address, &all);
		}
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
