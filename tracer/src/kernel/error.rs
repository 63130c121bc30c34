use std::io;

/// Why kernel structures could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("kernel memory at {address:#x} ({what}) cannot be read: {source}")]
    Unreadable { what: &'static str, address: u64, source: io::Error },
    /// A torn structure, or one that this program does not understand.
    #[error("{what} at {address:#x} makes no sense: {why}")]
    Impossible { what: &'static str, address: u64, why: String },
    #[error("the running kernel's BTF has no {structure}.{path}: rules cannot be read from this kernel")]
    NoMember { structure: &'static str, path: &'static str },
    #[error("the running kernel's BTF has no {name}: rules cannot be read from this kernel")]
    NoType { name: &'static str },
    #[error("the ruleset changed during each of {attempts} readings: try again when it is at rest")]
    Moving { attempts: u32 },
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    #[error("{what}: {source}")]
    Bpf { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

impl ReadError {
    pub(crate) fn impossible(what: &'static str, address: u64, why: impl Into<String>) -> Self {
        Self::Impossible { what, address, why: why.into() }
    }

    pub(crate) fn bpf<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Bpf { what, source: source.into() }
    }
}
