//! What can be wrong with peers, and what mends it.

use std::net::IpAddr;

use super::{MAX_FILE, MAX_INVITES, MAX_NAME, MAX_PEERS, VERSION};
use crate::error::{Hint, Status};
use crate::key::PublicKey;

/// What is wrong with a peers file or with a change to it.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// More than [`MAX_FILE`].
    #[error("the peers file has {0} bytes, at most {MAX_FILE} are possible")]
    TooLong(usize),
    /// Not the JSON described above.
    #[error("the peers file cannot be read")]
    Json(#[source] serde_json::Error),
    /// Not a change as described in `changes.rs`.
    #[error("the change in line {line} of the peers file cannot be read")]
    Change {
        /// Which line, counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a later program.
    #[error("the peers file has version {0}, this program knows {VERSION}")]
    Version(u64),
    /// More than [`MAX_PEERS`].
    #[error("there are more than {MAX_PEERS} peers or revoked keys")]
    Full,
    /// More than [`MAX_INVITES`].
    #[error("there are more than {MAX_INVITES} invites")]
    FullOfInvites,
    /// A record that no invite of ours has.
    #[error("the invite {} is damaged", .0.peer_id())]
    Invite(PublicKey),
    /// The key is there already, known or revoked.
    #[error("peer {} is there twice", .0.peer_id())]
    DuplicateKey(PublicKey),
    /// Another peer has this name.
    #[error("another peer has the name {0:?}")]
    DuplicateName(String),
    /// Another peer has this tunnel address.
    #[error("peer {} has the tunnel address {address} of another peer", peer.peer_id())]
    DuplicateAddress {
        /// Who would be the second one.
        peer: PublicKey,
        /// The address.
        address: IpAddr,
    },
    /// Not an address of one host.
    #[error("peer {} has the tunnel address {address}, which is not one host's", peer.peer_id())]
    Address {
        /// Whose.
        peer: PublicKey,
        /// The address.
        address: IpAddr,
    },
    /// Not a name.
    #[error("{name:?} is no peer name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Nobody of that ID, key or name.
    #[error("no peer {0:?}")]
    Unknown(String),
    /// Two peers of that ID.
    #[error("peer ID {0} fits more than one peer")]
    Ambiguous(String),
}

impl Hint for PeersError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            PeersError::TooLong(_) | PeersError::Json(_) => {
                "mend peers.json in the state directory, or move it away to start without peers".to_owned()
            }
            PeersError::Change { .. } => "mend that line of peers.json in the state directory, or delete it".to_owned(),
            PeersError::Version(_) => "a newer peervpn wrote it: use that one, or move peers.json away".to_owned(),
            PeersError::Full => "peervpn peers revoke ID makes room among the peers".to_owned(),
            PeersError::FullOfInvites => {
                "wait until some have expired, or take one back: peervpn peers revoke ID".to_owned()
            }
            PeersError::Invite(_) => "mend or delete its line in peers.json".to_owned(),
            PeersError::DuplicateKey(_) => "peervpn peers list shows it".to_owned(),
            PeersError::DuplicateName(_) | PeersError::Name { .. } => {
                format!("choose another name: 1 to {MAX_NAME} printable characters")
            }
            PeersError::DuplicateAddress { .. } => {
                "let the new peer connect with an invite, which carries its own address".to_owned()
            }
            PeersError::Address { .. } => "mend its tunnel_addresses in peers.json".to_owned(),
            PeersError::Unknown(_) => "peervpn peers list shows IDs, names and keys".to_owned(),
            PeersError::Ambiguous(_) => "give the whole public key".to_owned(),
        })
    }
    fn status(&self) -> Status {
        match self {
            PeersError::Name { .. } => Status::Usage,
            _ => Status::Failed,
        }
    }
}
