//! How a person names a peer.

use super::PeersError;
use crate::key::PublicKey;

/// Longest peer name in characters.
pub const MAX_NAME: usize = 64;

/// Whether a person means this key: its base64 text, or its peer ID with or without the hyphens.
pub fn designates(text: &str, key: &PublicKey) -> bool {
    text.parse::<PublicKey>().is_ok_and(|parsed| parsed == *key)
        || digits(text).is_some_and(|typed| key.peer_id().replace('-', "") == typed)
}

/// The digits of what has the form of a peer ID.
pub(super) fn digits(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    (digits.len() == 18 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
}

/// Refuses what could not be told apart or would spoil a terminal.
pub fn check_name(name: &str) -> Result<(), PeersError> {
    let wrong = |reason| Err(PeersError::Name { name: name.chars().take(MAX_NAME).collect(), reason });
    if name.is_empty() {
        return wrong("it is empty");
    }
    if name.chars().count() > MAX_NAME {
        return wrong("it is too long");
    }
    if name.trim() != name {
        return wrong("it begins or ends with white space");
    }
    if name.chars().any(invisible) {
        return wrong("it has a character that doesn't print");
    }
    if name.parse::<PublicKey>().is_ok() || digits(name).is_some() {
        return wrong("it looks like a key or a peer ID");
    }
    Ok(())
}

/// Control characters, line separators, and the format characters that hide or reorder text (Unicode category Cf).
fn invisible(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
