//! Filters in the Windows Filtering Platform (`fwpmu.h`): put up and taken down in one transaction each, found again by
//! our provider. They are static objects: they outlive the session that made them, and end with the system ("Object
//! Management", Windows Filtering Platform documentation).

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use ipnetwork::IpNetwork;
use windows_sys::Win32::Foundation::{FWP_E_ALREADY_EXISTS, FWP_E_IN_USE, FWP_E_NOT_FOUND, HANDLE};
use windows_sys::Win32::Foundation::{FWP_E_PROVIDER_NOT_FOUND, FWP_E_SUBLAYER_NOT_FOUND};
use windows_sys::Win32::NetworkManagement::WindowsFilteringPlatform::*;
use windows_sys::core::GUID;

use super::interface;
use super::text::wide;
use crate::types::Family;
use crate::wfp::{Action, Condition, Filter, FilterSet, Layer, PROVIDER, is_ours, sublayer};
use crate::{Error, Result};

/// `RPC_C_AUTHN_WINNT`, the one FwpmEngineOpen0 asks for.
const AUTHENTICATION: u32 = 10;
/// How long to wait for another program's transaction, milliseconds.
const WAIT: u32 = 5_000;
/// Our sublayer is asked before those of firewalls (`FWPM_SUBLAYER0.weight`; the highest is asked first).
const WEIGHT: u16 = u16::MAX;
/// A number that no link has (its type would be 0xffff), for one that is not there yet or no more: nothing is let through
/// on it, and every other link is another one.
const NO_LINK: u64 = u64::MAX;
/// Filters fetched at once.
const PAGE: u32 = 128;

/// An answer of the filter engine: 0, a Windows error or an `FWP_E_*`.
fn check(operation: impl FnOnce() -> String, answer: u32) -> Result<()> {
    if answer == 0 { Ok(()) } else { Err(refused(operation(), answer)) }
}

fn refused(operation: String, answer: u32) -> Error {
    Error::system(operation, std::io::Error::from_raw_os_error(answer as i32))
}

fn is(answer: u32, error: i32) -> bool {
    answer == error as u32
}

fn guid(key: u128) -> GUID {
    GUID::from_u128(key)
}

fn key(guid: &GUID) -> u128 {
    let head = u128::from(guid.data1) << 96 | u128::from(guid.data2) << 80 | u128::from(guid.data3) << 64;
    head | u128::from(u64::from_be_bytes(guid.data4))
}

/// A session with the filter engine. What is not committed when it ends is undone by the engine.
#[derive(Debug)]
struct Engine(HANDLE);

impl Engine {
    fn open() -> Result<Engine> {
        let mut name = wide("PeerVPN");
        let mut session = FWPM_SESSION0 { txnWaitTimeoutInMSec: WAIT, ..Default::default() };
        session.displayData.name = name.as_mut_ptr();
        let mut handle: HANDLE = null_mut();
        // SAFETY: the session and its name live through the call; the handle is written on success.
        let answer = unsafe { FwpmEngineOpen0(null(), AUTHENTICATION, null(), &raw const session, &raw mut handle) };
        check(|| "open the Windows filter engine".to_owned(), answer)?;
        Ok(Engine(handle))
    }

    /// Runs `work` in a transaction: all of it or nothing.
    fn transaction(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: the handle is open as long as we are; 0 asks for a read-write transaction.
        check(|| "begin a change of the Windows filters".to_owned(), unsafe { FwpmTransactionBegin0(self.0, 0) })?;
        match work() {
            // SAFETY: as above, and the transaction is ours.
            Ok(()) => check(|| "commit the Windows filters".to_owned(), unsafe { FwpmTransactionCommit0(self.0) }),
            Err(error) => {
                // SAFETY: as above.
                let _ = unsafe { FwpmTransactionAbort0(self.0) };
                Err(error)
            }
        }
    }

    /// Every filter of our provider.
    fn ours(&self) -> Result<Vec<Held>> {
        let operation = || "list the Windows filters".to_owned();
        let mut cursor: HANDLE = null_mut();
        // SAFETY: no template means every filter; the handle is written on success.
        check(operation, unsafe { FwpmFilterCreateEnumHandle0(self.0, null(), &raw mut cursor) })?;
        let mut held = Vec::new();
        let outcome = loop {
            let (mut entries, mut count) = (null_mut(), 0);
            // SAFETY: both handles are open; on success `entries` points to `count` pointers to filters.
            let answer = unsafe { FwpmFilterEnum0(self.0, cursor, PAGE, &raw mut entries, &raw mut count) };
            if let Err(error) = check(operation, answer) {
                break Err(error);
            }
            for index in 0..count as usize {
                // SAFETY: within the `count` pointers that the engine returned, which live until they are freed below.
                held.extend(unsafe { Held::of(&**entries.add(index)) });
            }
            // SAFETY: the engine allocated it, and nothing points into it any more.
            unsafe { FwpmFreeMemory0((&raw mut entries).cast()) };
            if count < PAGE {
                break Ok(());
            }
        };
        // SAFETY: the handle is open, and used no more.
        unsafe { FwpmFilterDestroyEnumHandle0(self.0, cursor) };
        // the order in which they are asked
        held.sort_by_key(|filter| std::cmp::Reverse(filter.weight));
        outcome.map(|()| held)
    }

    /// Deletes the filters of these sublayers of ours, and the sublayers (those of `nodes` without filters, too); then
    /// the provider, if nothing of it is left.
    fn clear(&self, which: impl Fn(u128) -> bool, nodes: &[u128]) -> Result<()> {
        let ours = self.ours()?;
        let seen = ours.iter().map(|f| f.sublayer).filter(|s| which(*s) && is_ours(*s));
        let mut sublayers: Vec<u128> = seen.chain(nodes.iter().copied()).collect();
        for filter in ours.iter().filter(|filter| which(filter.sublayer)) {
            // SAFETY: the handle is open.
            let answer = unsafe { FwpmFilterDeleteById0(self.0, filter.id) };
            if !is(answer, FWP_E_NOT_FOUND) {
                check(|| format!("delete the Windows filter \"{}\"", filter.name), answer)?;
            }
        }
        sublayers.sort_unstable();
        sublayers.dedup();
        for sublayer in sublayers {
            self.delete_sublayer(sublayer)?;
        }
        let provider = PROVIDER_KEY;
        // SAFETY: the handle is open, and the key lives through the call.
        let answer = unsafe { FwpmProviderDeleteByKey0(self.0, &raw const provider) };
        // another node's filters keep it
        if is(answer, FWP_E_IN_USE) || is(answer, FWP_E_PROVIDER_NOT_FOUND) || is(answer, FWP_E_NOT_FOUND) {
            return Ok(());
        }
        check(|| "delete our Windows filter provider".to_owned(), answer)
    }

    fn delete_sublayer(&self, sublayer: u128) -> Result<()> {
        let key = guid(sublayer);
        // SAFETY: the handle is open, and the key lives through the call.
        let answer = unsafe { FwpmSubLayerDeleteByKey0(self.0, &raw const key) };
        if is(answer, FWP_E_SUBLAYER_NOT_FOUND) || is(answer, FWP_E_NOT_FOUND) {
            return Ok(());
        }
        check(|| "delete our Windows filter sublayer".to_owned(), answer)
    }

    fn add_provider(&self) -> Result<()> {
        let (mut name, mut description) =
            (wide("PeerVPN"), wide("peervpn down lifts it; after a crash, peervpn recover"));
        let mut provider = FWPM_PROVIDER0 { providerKey: PROVIDER_KEY, ..Default::default() };
        provider.displayData.name = name.as_mut_ptr();
        provider.displayData.description = description.as_mut_ptr();
        // SAFETY: the provider and its texts live through the call; no security descriptor means the engine's own.
        let answer = unsafe { FwpmProviderAdd0(self.0, &raw const provider, null_mut()) };
        if is(answer, FWP_E_ALREADY_EXISTS) {
            Ok(())
        } else {
            check(|| "add our Windows filter provider".to_owned(), answer)
        }
    }

    fn add_sublayer(&self, set: &str) -> Result<()> {
        let mut name = wide(set);
        let mut provider = PROVIDER_KEY;
        let mut layer = FWPM_SUBLAYER0 {
            subLayerKey: guid(sublayer(set)),
            providerKey: &raw mut provider,
            weight: WEIGHT,
            ..Default::default()
        };
        layer.displayData.name = name.as_mut_ptr();
        // SAFETY: the sublayer and what it points to live through the call.
        let answer = unsafe { FwpmSubLayerAdd0(self.0, &raw const layer, null_mut()) };
        if is(answer, FWP_E_ALREADY_EXISTS) {
            Ok(())
        } else {
            check(|| "add our Windows filter sublayer".to_owned(), answer)
        }
    }

    fn add_filter(&self, set: &str, filter: &Filter, mut weight: u64) -> Result<()> {
        let operation = format!("add the Windows filter \"{filter}\"");
        let values = filter.conditions.iter().map(|c| Value::of(filter.layer, c)).collect::<Result<Vec<_>>>()?;
        let mut name = wide(filter.to_string());
        let mut provider = PROVIDER_KEY;
        let mut conditions: Vec<FWPM_FILTER_CONDITION0> = values.iter().map(Value::condition).collect();
        let always = filter.action == Action::PermitAlways;
        let mut entry = FWPM_FILTER0 {
            flags: if always { FWPM_FILTER_FLAG_CLEAR_ACTION_RIGHT } else { FWPM_FILTER_FLAG_NONE },
            providerKey: &raw mut provider,
            layerKey: layer_key(filter.layer),
            subLayerKey: guid(sublayer(set)),
            numFilterConditions: conditions.len() as u32,
            filterCondition: conditions.as_mut_ptr(),
            ..Default::default()
        };
        entry.displayData.name = name.as_mut_ptr();
        entry.weight.r#type = FWP_UINT64;
        entry.weight.Anonymous.uint64 = &raw mut weight;
        entry.action.r#type = if filter.action == Action::Block { FWP_ACTION_BLOCK } else { FWP_ACTION_PERMIT };
        // SAFETY: the filter and everything it points to (`values` holds what the conditions point to) live through the
        // call; the engine copies it.
        check(|| operation, unsafe { FwpmFilterAdd0(self.0, &raw const entry, null_mut(), null_mut()) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { FwpmEngineClose0(self.0) };
    }
}

/// A subscription to changes of filters, anyone's.
#[derive(Debug)]
pub(super) struct FilterWatch {
    engine: Engine,
    handle: HANDLE,
}

impl FilterWatch {
    /// `context` must be good for the callback until this is dropped.
    pub(super) fn open(callback: FWPM_FILTER_CHANGE_CALLBACK0, context: *const c_void) -> Result<FilterWatch> {
        let engine = Engine::open()?;
        let subscription =
            FWPM_FILTER_SUBSCRIPTION0 { flags: FWPM_SUBSCRIPTION_FLAG_NOTIFY_ON_DELETE, ..Default::default() };
        let mut handle: HANDLE = null_mut();
        // SAFETY: the subscription lives through the call; no template means every filter; the caller answers for the
        // context.
        let answer = unsafe {
            FwpmFilterSubscribeChanges0(engine.0, &raw const subscription, callback, context, &raw mut handle)
        };
        check(|| "watch the Windows filters".to_owned(), answer)?;
        Ok(FilterWatch { engine, handle })
    }
}

impl Drop for FilterWatch {
    fn drop(&mut self) {
        // SAFETY: subscribed by us, cancelled once, before its session ends. It returns when no callback runs any more.
        unsafe { FwpmFilterUnsubscribeChanges0(self.engine.0, self.handle) };
    }
}

const PROVIDER_KEY: GUID = GUID::from_u128(PROVIDER);

/// A filter of ours that the engine holds.
struct Held {
    id: u64,
    sublayer: u128,
    weight: u64,
    name: String,
}

impl Held {
    /// # Safety
    /// The filter must be one that the engine returned, with all that it points to.
    unsafe fn of(filter: &FWPM_FILTER0) -> Option<Held> {
        // SAFETY: null or a key, by the caller.
        let provider = unsafe { filter.providerKey.as_ref() }?;
        if key(provider) != PROVIDER {
            return None;
        }
        let weight = if filter.weight.r#type == FWP_UINT64 {
            // SAFETY: the type says which part of the union is set; null or a number, by the caller.
            unsafe { filter.weight.Anonymous.uint64.as_ref() }.copied().unwrap_or(0)
        } else {
            0
        };
        // SAFETY: null or a text that ends with zero, by the caller.
        let name = unsafe { super::text::from_wide(filter.displayData.name) };
        Some(Held { id: filter.filterId, sublayer: key(&filter.subLayerKey), weight, name })
    }
}

/// A condition with what it points to.
enum Value {
    Number64 { field: GUID, not: bool, number: Box<u64> },
    Number { field: GUID, kind: FWP_DATA_TYPE, number: u32, flags: bool },
    V4 { field: GUID, prefix: Box<FWP_V4_ADDR_AND_MASK> },
    V6 { field: GUID, prefix: Box<FWP_V6_ADDR_AND_MASK> },
    Program(Program),
}

/// Our program file as the engine knows it.
struct Program(*mut FWP_BYTE_BLOB);

impl Program {
    fn ours() -> Result<Program> {
        let operation = "find our own program file";
        let path = std::env::current_exe().map_err(|source| Error::system(operation, source))?;
        let (path, mut blob) = (wide(&path), null_mut());
        // SAFETY: the path ends with zero; the blob is written on success.
        let answer = unsafe { FwpmGetAppIdFromFileName0(path.as_ptr(), &raw mut blob) };
        check(|| operation.to_owned(), answer)?;
        Ok(Program(blob))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the engine's library allocated it; freed once.
        unsafe { FwpmFreeMemory0((&raw mut self.0).cast()) };
    }
}

fn layer_key(layer: Layer) -> GUID {
    match layer {
        Layer::Connect(Family::V4) => FWPM_LAYER_ALE_AUTH_CONNECT_V4,
        Layer::Connect(Family::V6) => FWPM_LAYER_ALE_AUTH_CONNECT_V6,
        Layer::Accept(Family::V4) => FWPM_LAYER_ALE_AUTH_RECV_ACCEPT_V4,
        Layer::Accept(Family::V6) => FWPM_LAYER_ALE_AUTH_RECV_ACCEPT_V6,
        Layer::Forward(Family::V4) => FWPM_LAYER_IPFORWARD_V4,
        Layer::Forward(Family::V6) => FWPM_LAYER_IPFORWARD_V6,
    }
}

impl Value {
    fn of(layer: Layer, condition: &Condition) -> Result<Value> {
        let forward = matches!(layer, Layer::Forward(_));
        let link = |field, name: &str, not| -> Result<Value> {
            Ok(Value::Number64 { field, not, number: Box::new(interface::luid(name)?.unwrap_or(NO_LINK)) })
        };
        let number = |field, kind, number| Value::Number { field, kind, number, flags: false };
        Ok(match condition {
            Condition::Interface { name, not } if forward => link(FWPM_CONDITION_IP_FORWARD_INTERFACE, name, *not)?,
            Condition::Interface { name, not } => link(FWPM_CONDITION_IP_LOCAL_INTERFACE, name, *not)?,
            Condition::Arrival { name, not } if forward => {
                link(FWPM_CONDITION_IP_PHYSICAL_ARRIVAL_INTERFACE, name, *not)?
            }
            Condition::Arrival { name, not } => link(FWPM_CONDITION_IP_ARRIVAL_INTERFACE, name, *not)?,
            Condition::Answer(name) => link(FWPM_CONDITION_IP_NEXTHOP_INTERFACE, name, false)?,
            Condition::Loopback => Value::Number {
                field: FWPM_CONDITION_FLAGS,
                kind: FWP_UINT32,
                number: FWP_CONDITION_FLAG_IS_LOOPBACK,
                flags: true,
            },
            Condition::OurProgram => Value::Program(Program::ours()?),
            Condition::Protocol(protocol) => number(FWPM_CONDITION_IP_PROTOCOL, FWP_UINT8, (*protocol).into()),
            Condition::LocalPort(port) => number(FWPM_CONDITION_IP_LOCAL_PORT, FWP_UINT16, (*port).into()),
            Condition::RemotePort(port) => number(FWPM_CONDITION_IP_REMOTE_PORT, FWP_UINT16, (*port).into()),
            // FWPM_CONDITION_ICMP_TYPE is another name of this field; fwpmu.h
            Condition::IcmpType(kind) => number(FWPM_CONDITION_IP_LOCAL_PORT, FWP_UINT16, (*kind).into()),
            Condition::Local(prefix) if forward => Value::prefix(FWPM_CONDITION_IP_SOURCE_ADDRESS, prefix),
            Condition::Local(prefix) => Value::prefix(FWPM_CONDITION_IP_LOCAL_ADDRESS, prefix),
            Condition::Remote(prefix) if forward => Value::prefix(FWPM_CONDITION_IP_DESTINATION_ADDRESS, prefix),
            Condition::Remote(prefix) => Value::prefix(FWPM_CONDITION_IP_REMOTE_ADDRESS, prefix),
        })
    }

    fn prefix(field: GUID, prefix: &IpNetwork) -> Value {
        match prefix {
            // in host byte order; FWP_V4_ADDR_AND_MASK
            IpNetwork::V4(v4) => Value::V4 {
                field,
                prefix: Box::new(FWP_V4_ADDR_AND_MASK { addr: v4.network().to_bits(), mask: v4.mask().to_bits() }),
            },
            IpNetwork::V6(v6) => Value::V6 {
                field,
                prefix: Box::new(FWP_V6_ADDR_AND_MASK { addr: v6.network().octets(), prefixLength: v6.prefix() }),
            },
        }
    }

    /// For as long as the value lives.
    fn condition(&self) -> FWPM_FILTER_CONDITION0 {
        let mut condition = FWPM_FILTER_CONDITION0 { matchType: FWP_MATCH_EQUAL, ..Default::default() };
        let value = &mut condition.conditionValue;
        match self {
            Value::Number64 { field, not, number } => {
                condition.fieldKey = *field;
                condition.matchType = if *not { FWP_MATCH_NOT_EQUAL } else { FWP_MATCH_EQUAL };
                value.r#type = FWP_UINT64;
                value.Anonymous.uint64 = (&raw const **number).cast_mut();
            }
            Value::Number { field, kind, number, flags } => {
                condition.fieldKey = *field;
                condition.matchType = if *flags { FWP_MATCH_FLAGS_ALL_SET } else { FWP_MATCH_EQUAL };
                value.r#type = *kind;
                // little-endian: the shorter numbers of the union are its first bytes
                value.Anonymous.uint32 = *number;
            }
            Value::V4 { field, prefix } => {
                condition.fieldKey = *field;
                value.r#type = FWP_V4_ADDR_MASK;
                value.Anonymous.v4AddrMask = (&raw const **prefix).cast_mut();
            }
            Value::V6 { field, prefix } => {
                condition.fieldKey = *field;
                value.r#type = FWP_V6_ADDR_MASK;
                value.Anonymous.v6AddrMask = (&raw const **prefix).cast_mut();
            }
            Value::Program(program) => {
                condition.fieldKey = FWPM_CONDITION_ALE_APP_ID;
                value.r#type = FWP_BYTE_BLOB_TYPE;
                value.Anonymous.byteBlob = program.0;
            }
        }
        condition
    }
}

/// Puts a node's filters up in place of those it had.
pub(super) fn replace(set: &FilterSet) -> Result<()> {
    let engine = Engine::open()?;
    let sublayer = sublayer(&set.name);
    engine.transaction(|| {
        engine.clear(|other| other == sublayer, &[sublayer])?;
        engine.add_provider()?;
        engine.add_sublayer(&set.name)?;
        let weights = (1..=set.filters.len() as u64).rev();
        set.filters.iter().zip(weights).try_for_each(|(filter, weight)| engine.add_filter(&set.name, filter, weight))
    })
}

/// The names of a node's filters in the order they are asked; `None` if it has none.
pub(super) fn names(set: &str) -> Result<Option<Vec<String>>> {
    let sublayer = sublayer(set);
    let held = Engine::open()?.ours()?;
    let names: Vec<String> = held.into_iter().filter(|f| f.sublayer == sublayer).map(|f| f.name).collect();
    Ok((!names.is_empty()).then_some(names))
}

/// Deletes a node's filters. None there is no error.
pub(super) fn delete(set: &str) -> Result<()> {
    let engine = Engine::open()?;
    let sublayer = sublayer(set);
    engine.transaction(|| engine.clear(|other| other == sublayer, &[sublayer]))
}

/// Deletes everything of our provider's, of whichever node.
pub(super) fn delete_all() -> Result<()> {
    let engine = Engine::open()?;
    engine.transaction(|| engine.clear(|_| true, &[]))
}
