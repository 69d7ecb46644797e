//! nftables by nfnetlink: a table goes to the kernel in one batch, which the kernel commits whole or not at all.

mod batch;
mod encode;
mod foreign;
mod set;

pub(super) use foreign::{delete_commented, insert_rules, seen_chains};

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_socket2::NetlinkSocket;

use crate::nft::{Chain, Hook, Match, Rule, Table};
use crate::{Error, Result};
use batch::Batch;
use encode::{bytes, nest, number, string};

/// nft(8) takes comments up to this many bytes, and a terminating NUL.
const COMMENT_MAX: usize = 127;
/// `NFTNL_UDATA_RULE_COMMENT`: nft's own type number in a rule's user data (type, length, value).
const USERDATA_COMMENT: u8 = 0;

/// Replaces the table of that name by this one, or makes it, atomically. Other tables are not touched.
pub(crate) fn replace_table(table: &Table) -> Result<()> {
    let operation = format!("replace firewall table inet {}", table.name);
    check(table).map_err(|detail| {
        Error::system(format!("{operation} ({detail})"), std::io::Error::from(std::io::ErrorKind::InvalidInput))
    })?;
    let mut batch = Batch::new(operation);
    // Deleting a table that isn't there would fail, so make it first.
    batch.push(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, "table", |buf| string(buf, 1, &table.name));
    batch.push(libc::NFT_MSG_DELTABLE, 0, "old table", |buf| string(buf, 1, &table.name));
    batch.push(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, "new table", |buf| string(buf, 1, &table.name));
    for chain in &table.chains {
        batch.push(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, format!("chain {}", chain.name), |buf| {
            encode_chain(buf, &table.name, chain);
        });
    }
    for chain in &table.chains {
        for (index, rule) in chain.rules.iter().enumerate() {
            let step = format!("chain {}, rule {}", chain.name, index + 1);
            let first_set = set::push(&mut batch, libc::NFPROTO_INET, &table.name, rule);
            batch.push(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, step, |buf| {
                encode_rule(buf, &table.name, &chain.name, rule, first_set);
            });
        }
    }
    batch.send()
}

/// Deletes the table. One that isn't there is no error.
pub(crate) fn delete_table(name: &str) -> Result<()> {
    let mut batch = Batch::new(format!("delete firewall table inet {name}"));
    batch.push(libc::NFT_MSG_DELTABLE, 0, "table", |buf| string(buf, 1, name));
    match batch.send() {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Each chain of the table with its number of rules, in order; `None` if there is no such table.
pub(crate) fn table_shape(sock: &mut NetlinkSocket, name: &str) -> Result<Option<Vec<(String, usize)>>> {
    let failed = |error: std::io::Error| Error::system(format!("read firewall table inet {name}"), error);
    let mut request = Request::new().op_gettable_do(&header(libc::NFPROTO_INET as u8, 0));
    request.encode().push_name_bytes(name.as_bytes());
    match sock.request(&request).map_err(failed)?.recv_one() {
        Ok(_) => {}
        Err(error) => {
            let error = std::io::Error::from(error);
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(None) } else { Err(failed(error)) };
        }
    }

    let mut shape: Vec<(String, usize)> = Vec::new();
    let request = Request::new().op_getchain_dump(&header(libc::NFPROTO_INET as u8, 0));
    let mut replies = sock.request(&request).map_err(failed)?;
    while let Some(reply) = replies.recv() {
        let (family, chain) = reply.map_err(|error| failed(error.into()))?;
        let table = chain.get_table().map_err(|error| failed(error.into()))?;
        if i32::from(family.nfgen_family) == libc::NFPROTO_INET && table.to_bytes() == name.as_bytes() {
            let chain = chain.get_name().map_err(|error| failed(error.into()))?;
            shape.push((chain.to_string_lossy().into_owned(), 0));
        }
    }

    let mut request = Request::new().op_getrule_dump(&header(libc::NFPROTO_INET as u8, 0));
    request.encode().push_table_bytes(name.as_bytes());
    let mut replies = sock.request(&request).map_err(failed)?;
    while let Some(reply) = replies.recv() {
        let (family, rule) = reply.map_err(|error| failed(error.into()))?;
        // Kernels before 4.12 don't filter a dump by table.
        let table = rule.get_table().map_err(|error| failed(error.into()))?;
        let chain = rule.get_chain().map_err(|error| failed(error.into()))?;
        if i32::from(family.nfgen_family) == libc::NFPROTO_INET
            && table.to_bytes() == name.as_bytes()
            && let Some((_, rules)) = shape.iter_mut().find(|(name, _)| name.as_bytes() == chain.to_bytes())
        {
            *rules += 1;
        }
    }
    Ok(Some(shape))
}

/// What the wire format can't carry, found before anything is sent.
fn check(table: &Table) -> std::result::Result<(), String> {
    let word = |what: &str, word: &str, max: usize| {
        if word.is_empty() || word.len() > max || word.contains('\0') {
            return Err(format!("{what} {word:?} must have 1 to {max} bytes and no NUL"));
        }
        Ok(())
    };
    word("table name", &table.name, libc::NFT_TABLE_MAXNAMELEN as usize - 1)?;
    for chain in &table.chains {
        word("chain name", &chain.name, libc::NFT_CHAIN_MAXNAMELEN as usize - 1)?;
        for rule in &chain.rules {
            if let Some(comment) = &rule.comment {
                word("comment", comment, COMMENT_MAX)?;
            }
            for condition in &rule.matches {
                if let Match::Iif { name, .. } | Match::Oif { name, .. } = condition {
                    word("interface name", name, libc::IFNAMSIZ - 1)?;
                }
                if let Some(prefixes) = condition.prefixes()
                    && prefixes.first().is_none_or(|one| prefixes.iter().any(|p| p.is_ipv4() != one.is_ipv4()))
                {
                    return Err("a set of no prefixes, or of both families".to_owned());
                }
            }
        }
    }
    Ok(())
}

fn encode_chain(buf: &mut Vec<u8>, table: &str, chain: &Chain) {
    string(buf, 1, table);
    string(buf, 3, &chain.name);
    if let Some(base) = &chain.base {
        nest(buf, 4, |buf| {
            number(buf, 1, hook_number(base.hook));
            number(buf, 2, base.priority as u32);
        });
        number(buf, 5, if base.drop { libc::NF_DROP } else { libc::NF_ACCEPT } as u32);
        string(buf, 7, base.kind.name());
    }
}

/// `first_set`: number of the first of its [`set`]s.
fn encode_rule(buf: &mut Vec<u8>, table: &str, chain: &str, rule: &Rule, first_set: u32) {
    string(buf, 1, table);
    string(buf, 2, chain);
    nest(buf, 4, |buf| encode::expressions(buf, rule, first_set));
    if let Some(comment) = &rule.comment {
        let mut userdata = vec![USERDATA_COMMENT, comment.len() as u8 + 1];
        userdata.extend_from_slice(comment.as_bytes());
        userdata.push(0);
        bytes(buf, 7, &userdata);
    }
}

/// `enum nf_inet_hooks`, `linux/netfilter.h`.
fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn header(family: u8, resource: u16) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header.set_res_id(resource);
    header
}
