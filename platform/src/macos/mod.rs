//! To come: typed `Unsupported`.
