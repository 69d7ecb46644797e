//! Other programs' chains: read as far as it matters to packets that are forwarded, and rules of ours in them, known by
//! their comment.

use netlink_bindings::nftables::{DataAttrs, ExprListAttrs, ExprOps, IterableRuleAttrs, Request, RuleAttrs};
use netlink_socket2::NetlinkSocket;

use super::batch::Batch;
use super::encode::{bytes, string};
use super::{USERDATA_COMMENT, encode_rule, header, set};
use crate::nft::Rule;
use crate::nft::foreign::{Place, Position, SeenChain, SeenRule, TableFamily, Verdict};
use crate::{Error, Result};

/// `NFTA_RULE_HANDLE`, `NFTA_RULE_POSITION`: linux/netfilter/nf_tables.h.
const RULE_HANDLE: u16 = 3;
const RULE_POSITION: u16 = 6;
/// `NFT_GOTO`, `NFT_JUMP` as they travel.
const GOTO: u32 = libc::NFT_GOTO as u32;
const JUMP: u32 = libc::NFT_JUMP as u32;

fn failed(error: impl Into<std::io::Error>) -> Error {
    Error::system("read the firewall's chains", error.into())
}

/// Every chain of the families that see forwarded IP packets, with its rules.
pub(crate) fn seen_chains(sock: &mut NetlinkSocket) -> Result<Vec<SeenChain>> {
    let mut chains = Vec::new();
    for family in TableFamily::ALL {
        let first = chains.len();
        let request = Request::new().op_getchain_dump(&header(family.number(), 0));
        let mut replies = sock.request(&request).map_err(failed)?;
        while let Some(reply) = replies.recv() {
            let (found, chain) = reply.map_err(failed)?;
            if found.nfgen_family != family.number() {
                continue;
            }
            let (Ok(table), Ok(name)) = (chain.get_table(), chain.get_name()) else { continue };
            let filter = chain.get_type().is_ok_and(|kind| kind.to_bytes() == b"filter");
            let hook = chain.get_hook().ok().and_then(|hook| hook.get_num().ok());
            chains.push(SeenChain {
                family,
                table: table.to_string_lossy().into_owned(),
                name: name.to_string_lossy().into_owned(),
                forwards: filter && hook == Some(libc::NF_INET_FORWARD as u32),
                receives: filter && hook == Some(libc::NF_INET_LOCAL_IN as u32),
                drops: chain.get_policy().is_ok_and(|policy| policy == libc::NF_DROP as u32),
                rules: Vec::new(),
            });
        }
        if chains.len() == first {
            continue;
        }
        let request = Request::new().op_getrule_dump(&header(family.number(), 0));
        let mut replies = sock.request(&request).map_err(failed)?;
        while let Some(reply) = replies.recv() {
            let (found, rule) = reply.map_err(failed)?;
            let (Ok(table), Ok(chain)) = (rule.get_table(), rule.get_chain()) else { continue };
            let of = |seen: &&mut SeenChain| {
                seen.family.number() == found.nfgen_family
                    && seen.table.as_bytes() == table.to_bytes()
                    && seen.name.as_bytes() == chain.to_bytes()
            };
            if let (Some(chain), Some(rule)) = (chains[first..].iter_mut().find(of), seen_rule(&rule)) {
                chain.rules.push(rule);
            }
        }
    }
    Ok(chains)
}

fn seen_rule(rule: &IterableRuleAttrs<'_>) -> Option<SeenRule> {
    let mut seen = SeenRule { handle: rule.get_handle().ok()?, comment: None, always: None };
    let (mut verdict, mut conditions) = (None, false);
    for attr in rule.flatten() {
        match attr {
            RuleAttrs::Userdata(data) => seen.comment = comment(data),
            RuleAttrs::Expressions(list) => {
                for expression in list {
                    let Ok(ExprListAttrs::Elem(expression)) = expression else {
                        conditions = true;
                        continue;
                    };
                    match expression.get_data() {
                        Ok(ExprOps::Counter(_) | ExprOps::Log(_)) => {}
                        Ok(ExprOps::Reject(_)) => verdict = Some(Verdict::Drop),
                        Ok(ExprOps::Target(target)) => match target.get_name().map(std::ffi::CStr::to_bytes) {
                            Ok(b"REJECT") => verdict = Some(Verdict::Drop),
                            Ok(b"LOG" | b"NFLOG") => {}
                            _ => conditions = true,
                        },
                        Ok(ExprOps::Immediate(immediate)) => {
                            let data = immediate.get_data().ok().into_iter().flat_map(|data| data.flatten());
                            for value in data {
                                if let DataAttrs::Verdict(value) = value {
                                    let chain = value.get_chain().map(|name| name.to_string_lossy().into_owned());
                                    verdict = match (value.get_code().ok()?, chain) {
                                        (code, _) if code == libc::NF_DROP as u32 => Some(Verdict::Drop),
                                        (code, _) if code == libc::NF_ACCEPT as u32 => Some(Verdict::Accept),
                                        (JUMP | GOTO, Ok(chain)) => Some(Verdict::Jump(chain)),
                                        _ => None,
                                    };
                                }
                            }
                        }
                        // "notrack", "limit" and the like: whatever it is, it may not hold for every packet
                        _ => conditions = true,
                    }
                }
            }
            _ => {}
        }
    }
    seen.always = verdict.filter(|_| !conditions);
    Some(seen)
}

/// The comment in a rule's user data: (type, length, value)…
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == USERDATA_COMMENT {
            return Some(String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned());
        }
        data = &rest[value.len()..];
    }
    None
}

/// Puts rules into another program's chain, in order, in one transaction.
pub(crate) fn insert_rules(place: &Place, rules: &[Rule]) -> Result<()> {
    let mut batch = Batch::new(format!("add rules to chain {place}"));
    let family = i32::from(place.family.number());
    let (flags, ordered): (_, Vec<&Rule>) = match place.position {
        Position::First => (libc::NLM_F_CREATE, rules.iter().rev().collect()),
        Position::Before(_) => (libc::NLM_F_CREATE, rules.iter().collect()),
        Position::Last => (libc::NLM_F_CREATE | libc::NLM_F_APPEND, rules.iter().collect()),
    };
    for rule in ordered {
        let first_set = set::push(&mut batch, family, &place.table, rule);
        batch.push_of(family, libc::NFT_MSG_NEWRULE, flags, "rule", |buf| {
            encode_rule(buf, &place.table, &place.chain, rule, first_set);
            if let Position::Before(handle) = place.position {
                bytes(buf, RULE_POSITION, &handle.to_be_bytes());
            }
        });
    }
    batch.send()
}

/// Deletes every rule with this comment from another program's chain. Gone already, chain and all, is no error.
pub(crate) fn delete_commented(sock: &mut NetlinkSocket, place: &Place, comment: &str) -> Result<()> {
    let chains = seen_chains(sock)?;
    let Some(chain) = chains.iter().find(|chain| place.is(chain)) else { return Ok(()) };
    for rule in chain.rules.iter().filter(|rule| rule.comment.as_deref() == Some(comment)) {
        let mut batch = Batch::new(format!("delete our rule from chain {place}"));
        batch.push_of(i32::from(place.family.number()), libc::NFT_MSG_DELRULE, 0, "rule", |buf| {
            string(buf, 1, &place.table);
            string(buf, 2, &place.chain);
            bytes(buf, RULE_HANDLE, &rule.handle.to_be_bytes());
        });
        match batch.send() {
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            result => result?,
        }
    }
    Ok(())
}
