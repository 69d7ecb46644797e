//! Other processes. None is ever started here.

use std::path::{Path, PathBuf};

pub use super::absent::process::*;

use super::control;

/// Those of the files `wanted` that other nodes on this machine have open. Windows tells nobody which files those are, so
/// each node says that it runs; of its journal no more is known than the name.
pub fn open_elsewhere(wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let journal = |interface: String| Path::new("journal").join(format!("{interface}.journal"));
    control::nodes().into_iter().map(journal).filter(|path| wanted(path)).collect()
}
