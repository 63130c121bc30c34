use std::{
    hash::{DefaultHasher, Hasher},
    ops::Range,
};

use super::{Memory, ReadError};

/// A piece of kernel memory taken at once: fields are read from the copy, and none outside it.
#[derive(Debug)]
pub struct Block {
    what: &'static str,
    address: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// Copies `length` bytes; `what` names them in errors.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`].
    pub fn read(
        memory: &dyn Memory,
        what: &'static str,
        address: u64,
        length: u32,
    ) -> Result<Self, ReadError> {
        let mut bytes = vec![0; length as usize];
        memory.read(address, &mut bytes).map_err(|source| ReadError::Unreadable { what, address, source })?;
        Ok(Self { what, address, bytes })
    }

    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    #[must_use]
    pub fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Changes, all but certainly, when a byte does that is not in one of the `skipped` ranges (ascending). Holds
    /// within this process only.
    pub(crate) fn hash_without(&self, skipped: &[Range<u32>]) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut start = 0;
        for range in skipped {
            hasher.write(self.bytes.get(start..range.start as usize).unwrap_or_default());
            start = range.end as usize;
        }
        hasher.write(self.bytes.get(start..).unwrap_or_default());
        hasher.finish()
    }

    /// An error about the structure at `offset`.
    pub(crate) fn impossible(&self, offset: u32, why: impl Into<String>) -> ReadError {
        ReadError::impossible(self.what, self.address.wrapping_add(u64::from(offset)), why)
    }

    fn array<const N: usize>(&self, offset: u32) -> Result<[u8; N], ReadError> {
        let start = offset as usize;
        start
            .checked_add(N)
            .and_then(|end| self.bytes.get(start..end))
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| self.impossible(offset, format!("lies outside its {} bytes", self.bytes.len())))
    }

    /// # Errors
    /// [`ReadError::Impossible`] outside the block; so for all readers of fields.
    pub fn u8(&self, offset: u32) -> Result<u8, ReadError> {
        Ok(self.array::<1>(offset)?[0])
    }

    /// # Errors
    /// As [`Self::u8`].
    pub fn u16(&self, offset: u32) -> Result<u16, ReadError> {
        Ok(u16::from_ne_bytes(self.array(offset)?))
    }

    /// # Errors
    /// As [`Self::u8`].
    pub fn u32(&self, offset: u32) -> Result<u32, ReadError> {
        Ok(u32::from_ne_bytes(self.array(offset)?))
    }

    /// # Errors
    /// As [`Self::u8`].
    pub fn i32(&self, offset: u32) -> Result<i32, ReadError> {
        Ok(i32::from_ne_bytes(self.array(offset)?))
    }

    /// # Errors
    /// As [`Self::u8`].
    pub fn u64(&self, offset: u32) -> Result<u64, ReadError> {
        Ok(u64::from_ne_bytes(self.array(offset)?))
    }

    /// A pointer; `None` for NULL.
    ///
    /// # Errors
    /// As [`Self::u8`].
    pub fn pointer(&self, offset: u32) -> Result<Option<u64>, ReadError> {
        Ok(Some(self.u64(offset)?).filter(|pointer| *pointer != 0))
    }

    /// The text in a `char[size]`, up to its NUL or its end.
    ///
    /// # Errors
    /// As [`Self::u8`].
    pub fn text(&self, offset: u32, size: u32) -> Result<String, ReadError> {
        let start = offset as usize;
        let bytes = start
            .checked_add(size as usize)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or_else(|| self.impossible(offset, "its text lies outside"))?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}
