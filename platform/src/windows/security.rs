//! Access control: who may use what we make. The same three everywhere: the system, the administrators, and the owner
//! (whoever made it; administrators where an elevated program did).

use std::ffi::c_void;
use std::io;
use std::path::Path;
use std::ptr::null_mut;

use windows_sys::Win32::Foundation::{CloseHandle, ERROR_SUCCESS, GENERIC_ALL, GENERIC_WRITE, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, ConvertStringSidToSidW, GetNamedSecurityInfoW,
    SDDL_REVISION_1, SE_FILE_OBJECT,
};
use windows_sys::Win32::Security::{
    ACCESS_ALLOWED_ACE, ACE_HEADER, ACL, ACL_SIZE_INFORMATION, AclSizeInformation, DACL_SECURITY_INFORMATION, EqualSid,
    GetAce, GetAclInformation, GetTokenInformation, IsWellKnownSid, OWNER_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR,
    PSID, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser, WinBuiltinAdministratorsSid,
    WinCreatorOwnerRightsSid, WinCreatorOwnerSid, WinLocalSystemSid,
};
use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_APPEND_DATA, FILE_DELETE_CHILD, FILE_WRITE_DATA, WRITE_DAC, WRITE_OWNER,
};
use windows_sys::Win32::System::SystemServices::{ACCESS_ALLOWED_ACE_TYPE, ACCESS_DENIED_ACE_TYPE};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

use super::text::wide;

/// A file or pipe for the three, nothing inherited from above; Security Descriptor String Format.
pub(crate) const OBJECT: &str = "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;OW)";
/// The same for a directory and everything in it.
pub(crate) const DIRECTORY: &str = "D:P(A;OICI;GA;;;SY)(A;OICI;GA;;;BA)(A;OICI;GA;;;OW)";

/// What others must not have on a directory of ours, lest they put something of theirs there.
const CHANGES: u32 = FILE_WRITE_DATA
    | FILE_APPEND_DATA
    | FILE_DELETE_CHILD
    | DELETE
    | WRITE_DAC
    | WRITE_OWNER
    | GENERIC_WRITE
    | GENERIC_ALL;

/// A security descriptor, freed when dropped.
#[derive(Debug)]
pub(crate) struct Descriptor(PSECURITY_DESCRIPTOR);

// SAFETY: nobody changes it after it was made, and it belongs to no thread.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// From its text form.
    pub(crate) fn parse(sddl: &str) -> io::Result<Descriptor> {
        let mut descriptor = null_mut();
        // SAFETY: a string that ends with zero, a place for the result, and no wish to know its size.
        let done = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                wide(sddl).as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                null_mut(),
            )
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(Descriptor(descriptor)) }
    }

    /// For the calls that make something; points into this descriptor.
    pub(crate) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.0,
            bInheritHandle: 0,
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the calls that made it say that LocalFree frees it.
        unsafe { LocalFree(self.0) };
    }
}

/// Whose a file or directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It belongs to one of the three, and nobody else may change it.
    Ours,
    /// It belongs to someone else.
    Foreign,
    /// Others may write to it.
    Loose,
}

/// Looks at a file's or directory's owner and access control list.
pub(crate) fn standing(path: &Path) -> io::Result<Standing> {
    let us = own_user()?;
    standing_for(path, |sid| administrative(sid) || is(sid, &us))
}

/// The same, but whoever runs this program is one of the others, too: unelevated programs of an administrator are.
pub(crate) fn standing_of_system(path: &Path) -> io::Result<Standing> {
    standing_for(path, administrative)
}

fn standing_for(path: &Path, trusted: impl Fn(PSID) -> bool) -> io::Result<Standing> {
    let (mut owner, mut list, mut descriptor): (PSID, *mut ACL, _) = (null_mut(), null_mut(), null_mut());
    // SAFETY: a path that ends with zero, and places for the results; what was not asked for may be null.
    let error = unsafe {
        GetNamedSecurityInfoW(
            wide(path).as_ptr(),
            SE_FILE_OBJECT,
            OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
            &mut owner,
            null_mut(),
            &mut list,
            null_mut(),
            &mut descriptor,
        )
    };
    if error != ERROR_SUCCESS {
        return Err(io::Error::from_raw_os_error(error as i32));
    }
    // owner and list point into it
    let _descriptor = Descriptor(descriptor);
    if !trusted(owner) {
        return Ok(Standing::Foreign);
    }
    if list.is_null() {
        // no list: everybody may do everything
        return Ok(Standing::Loose);
    }
    let mut size = ACL_SIZE_INFORMATION::default();
    // SAFETY: a list that the system gave us, and room for what is asked about it.
    let done = unsafe {
        GetAclInformation(list, (&raw mut size).cast(), size_of::<ACL_SIZE_INFORMATION>() as u32, AclSizeInformation)
    };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    for index in 0..size.AceCount {
        let mut entry: *mut c_void = null_mut();
        // SAFETY: the list has this many entries.
        if unsafe { GetAce(list, index, &mut entry) } == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: every entry starts with a header.
        match u32::from(unsafe { (*entry.cast::<ACE_HEADER>()).AceType }) {
            ACCESS_ALLOWED_ACE_TYPE => {}
            ACCESS_DENIED_ACE_TYPE => continue,
            // of another form: on conditions, of parts of an object
            _ => return Ok(Standing::Loose),
        }
        let entry: *mut ACCESS_ALLOWED_ACE = entry.cast();
        // SAFETY: an entry of this type is an ACCESS_ALLOWED_ACE, whose security identifier begins at SidStart.
        let (mask, sid) = unsafe { ((*entry).Mask, (&raw mut (*entry).SidStart).cast::<c_void>()) };
        if mask & CHANGES != 0 && !trusted(sid) {
            return Ok(Standing::Loose);
        }
    }
    Ok(Standing::Ours)
}

/// One of the three (the owner is looked at by name), or who installs Windows' own files.
fn administrative(sid: PSID) -> bool {
    let known = [WinLocalSystemSid, WinBuiltinAdministratorsSid, WinCreatorOwnerRightsSid, WinCreatorOwnerSid];
    // SAFETY: a valid security identifier.
    known.iter().any(|kind| unsafe { IsWellKnownSid(sid, *kind) } != 0) || is_installer(sid)
}

/// `NT SERVICE\TrustedInstaller`, to whom `%ProgramFiles%` belongs; the number is made of the name, and so the same everywhere.
fn is_installer(sid: PSID) -> bool {
    const INSTALLER: &str = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464";
    let mut installer: PSID = null_mut();
    // SAFETY: a text that ends with zero, and a place for the result.
    if unsafe { ConvertStringSidToSidW(wide(INSTALLER).as_ptr(), &mut installer) } == 0 {
        return false;
    }
    // SAFETY: two valid security identifiers.
    let same = unsafe { EqualSid(sid, installer) != 0 };
    // SAFETY: its documentation says that LocalFree frees it.
    unsafe { LocalFree(installer) };
    same
}

/// Whether it is this user, given as a `TOKEN_USER`.
fn is(sid: PSID, us: &[u64]) -> bool {
    // SAFETY: `us` holds a TOKEN_USER that GetTokenInformation wrote, and lies aligned for it.
    let user = unsafe { (*us.as_ptr().cast::<TOKEN_USER>()).User.Sid };
    // SAFETY: two valid security identifiers.
    unsafe { EqualSid(sid, user) != 0 }
}

/// This process's user, as a `TOKEN_USER`.
fn own_user() -> io::Result<Vec<u64>> {
    let mut token: HANDLE = null_mut();
    // SAFETY: our own process, and a place for the handle.
    if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // a security identifier has at most 68 bytes (SECURITY_MAX_SID_SIZE)
    let mut buffer = vec![0u64; 32];
    let mut length = 0;
    // SAFETY: an open token, and a buffer of the size given.
    let done = unsafe {
        GetTokenInformation(token, TokenUser, buffer.as_mut_ptr().cast(), (buffer.len() * 8) as u32, &mut length)
    };
    let outcome = if done == 0 { Err(io::Error::last_os_error()) } else { Ok(buffer) };
    // SAFETY: a handle of ours, closed once.
    unsafe { CloseHandle(token) };
    outcome
}
