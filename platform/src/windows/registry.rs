//! Registry keys (`winreg.h`).

use std::ptr::{null, null_mut};

use windows_sys::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_NO_MORE_ITEMS};
use windows_sys::Win32::System::Registry::*;

use super::interface::check;
use super::text::{narrow, wide};
use crate::Result;

/// Longest name of a key, in UTF-16 units with the zero.
const KEY_NAME: usize = 256;

/// An open registry key.
pub(super) struct Key(pub(super) HKEY);

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { RegCloseKey(self.0) };
    }
}

/// Also whether it was not there before.
pub(super) fn create(parent: HKEY, path: &str, options: REG_OPEN_CREATE_OPTIONS) -> Result<(Key, bool)> {
    let (name, mut key, mut how) = (wide(path), null_mut(), 0);
    // SAFETY: the name ends with zero; key and disposition are written on success; null means the default elsewhere.
    let answer = unsafe {
        let (key, how) = (&raw mut key, &raw mut how);
        RegCreateKeyExW(parent, name.as_ptr(), 0, null(), options, KEY_ALL_ACCESS, null(), key, how)
    };
    check(|| format!("create registry key {path}"), answer)?;
    Ok((Key(key), how == REG_CREATED_NEW_KEY))
}

/// `None` if there is none.
pub(super) fn open(parent: HKEY, path: &str, access: REG_SAM_FLAGS) -> Result<Option<Key>> {
    let (name, mut key) = (wide(path), null_mut());
    // SAFETY: the name ends with zero; the key is written on success.
    match unsafe { RegOpenKeyExW(parent, name.as_ptr(), 0, access, &raw mut key) } {
        ERROR_FILE_NOT_FOUND => Ok(None),
        answer => check(|| format!("open registry key {path}"), answer).map(|()| Some(Key(key))),
    }
}

impl Key {
    pub(super) fn set(&self, name: &str, kind: REG_VALUE_TYPE, bytes: &[u8]) -> Result<()> {
        let wide_name = wide(name);
        // SAFETY: the name ends with zero; the bytes have the length given.
        let answer = unsafe { RegSetValueExW(self.0, wide_name.as_ptr(), 0, kind, bytes.as_ptr(), bytes.len() as u32) };
        check(|| format!("write registry value {name}"), answer)
    }

    pub(super) fn set_text(&self, name: &str, text: &str) -> Result<()> {
        self.set(name, REG_SZ, &bytes(&wide(text)))
    }

    pub(super) fn set_number(&self, name: &str, number: u32) -> Result<()> {
        self.set(name, REG_DWORD, &number.to_le_bytes())
    }

    /// A text; `None` if there is none, or one longer than any of ours.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let (name, mut buffer) = (wide(name), [0_u16; 1024]);
        let mut length = size_of_val(&buffer) as u32;
        // SAFETY: the name ends with zero; the buffer has the length given, in bytes.
        let answer = unsafe {
            RegGetValueW(
                self.0,
                null(),
                name.as_ptr(),
                RRF_RT_REG_SZ,
                null_mut(),
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        (answer == 0).then(|| narrow(&buffer))
    }

    /// A number; `None` if there is none.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        let (name, mut number, mut length) = (wide(name), 0_u32, size_of::<u32>() as u32);
        // SAFETY: the name ends with zero; the number has the length given.
        let answer = unsafe {
            let number = (&raw mut number).cast();
            RegGetValueW(self.0, null(), name.as_ptr(), RRF_RT_REG_DWORD, null_mut(), number, &raw mut length)
        };
        (answer == 0).then_some(number)
    }

    pub(super) fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        loop {
            let mut name = [0_u16; KEY_NAME];
            let mut length = KEY_NAME as u32;
            let index = names.len() as u32;
            // SAFETY: the buffer has the length given; the rest is null where nothing is asked for.
            let answer = unsafe {
                let name = name.as_mut_ptr();
                RegEnumKeyExW(self.0, index, name, &raw mut length, null(), null_mut(), null_mut(), null_mut())
            };
            match answer {
                ERROR_NO_MORE_ITEMS => return Ok(names),
                _ => check(|| "list registry keys".to_owned(), answer)?,
            }
            names.push(narrow(&name));
        }
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        let wide_name = wide(name);
        // SAFETY: the name ends with zero.
        match unsafe { RegDeleteTreeW(self.0, wide_name.as_ptr()) } {
            ERROR_FILE_NOT_FOUND => Ok(()),
            answer => check(|| format!("delete registry key {name}"), answer),
        }
    }
}

/// As a text stands in the registry.
pub(super) fn bytes(text: &[u16]) -> Vec<u8> {
    text.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}
