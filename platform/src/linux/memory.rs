//! What a process that only waits holds in memory.

/// Lets go of the pages of program and libraries that are mapped: those that run come back, those that only the start
/// needed do not. Only whole pages of segments that nobody can have written to. MADV_DONTNEED in madvise(2).
pub fn release_program_pages() {
    // SAFETY: `release` has the type that dl_iterate_phdr(3) calls, and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(release), std::ptr::null_mut()) };
}

/// Of one object.
unsafe extern "C" fn release(info: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> libc::c_int {
    // SAFETY: dl_iterate_phdr(3) gives a valid object with as many program headers.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    // SAFETY: no pointers.
    let (page, vdso) =
        unsafe { (libc::sysconf(libc::_SC_PAGESIZE) as usize, libc::getauxval(libc::AT_SYSINFO_EHDR) as usize) };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        // an object may be linked for a higher address than it has: its base is then less than nothing
        let begin = base.wrapping_add(header.p_vaddr as usize);
        let end = begin.wrapping_add(header.p_memsz as usize) / page * page;
        let first = begin.div_ceil(page) * page;
        // the vDSO is the kernel's, and no file
        if first < end && !(begin..end).contains(&vdso) {
            // SAFETY: a mapping of a file, unchanged: what is touched is read from the file again.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Read-only, and so large that nobody else's page is near its middle: a fault brings in its neighbours, too.
    static LARGE: [u8; 1 << 20] = {
        let mut bytes = [0; 1 << 20];
        bytes[1 << 19] = 7;
        bytes
    };

    /// Whether a page of ours is mapped: bit 63 of its entry, proc_pid_pagemap(5).
    fn mapped(address: &u8) -> Option<bool> {
        // SAFETY: no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
        let mut entry = [0; 8];
        let pagemap = std::fs::File::open("/proc/self/pagemap").ok()?;
        pagemap.read_exact_at(&mut entry, std::ptr::from_ref(address) as u64 / page * 8).ok()?;
        Some(u64::from_ne_bytes(entry) >> 63 == 1)
    }

    #[test]
    fn what_only_the_start_needed_is_let_go_and_comes_back() {
        let byte = &LARGE[1 << 19];
        let read = || {
            // SAFETY: it is there; so that the compiler does not know what.
            unsafe { std::ptr::read_volatile(byte) }
        };
        assert_eq!(read(), 7);
        // an emulated program is told of its emulator's pages
        let Some(true) = mapped(byte) else {
            return eprintln!("SKIP: /proc/self/pagemap of this process");
        };
        release_program_pages();
        assert_eq!(mapped(byte), Some(false));
        assert_eq!(read(), 7);
        assert_eq!(mapped(byte), Some(true));
    }
}
