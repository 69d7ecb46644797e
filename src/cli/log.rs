//! The log on stderr: warnings, and with each `-v` more. Only of our own crates: the trace of gotatun prints whole
//! configurations, keys included.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::SubscriberExt as _;

use super::style::Style;
use super::terminal;

/// Has it written from here on, so much of it.
pub(super) fn to_stderr(verbose: u8, style: Style) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // fails only where a test in this process has set one already
    let _ = tracing::subscriber::set_global_default(Late { level, style, made: OnceLock::new() });
}

/// What writes the log, made with its first line: most short commands have none, and its tables alone are 32 KiB.
struct Late {
    level: LevelFilter,
    style: Style,
    made: OnceLock<Box<dyn Subscriber + Send + Sync>>,
}

impl Late {
    fn made(&self) -> &dyn Subscriber {
        &**self.made.get_or_init(|| {
            let lines = tracing_subscriber::fmt::layer().with_writer(|| terminal::Log).with_ansi(self.style.colour);
            Box::new(tracing_subscriber::registry().with(lines))
        })
    }
}

impl Subscriber for Late {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with("peervpn")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.made().new_span(span)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.made().record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.made().record_follows_from(span, follows);
    }

    fn event(&self, event: &Event<'_>) {
        self.made().event(event);
    }

    fn enter(&self, span: &Id) {
        self.made().enter(span);
    }

    fn exit(&self, span: &Id) {
        self.made().exit(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.made().clone_span(id)
    }

    fn try_close(&self, id: Id) -> bool {
        self.made().try_close(id)
    }
}
