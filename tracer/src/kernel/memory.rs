//! Kernel memory as something that can be read, so that walks are tested without a kernel.

use std::io;

/// Longest C string that is read; kernel names of tables, chains and modules are shorter.
const MAX_TEXT: usize = 4096;

/// Reads kernel memory. Addresses and values are of this machine (64 bit, native endian).
pub trait Memory {
    /// Fills `into` from `address`.
    ///
    /// # Errors
    /// When a byte of the range is not mapped; `into` then holds nothing meaningful.
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()>;

    /// # Errors
    /// As [`Self::read`].
    fn read_u8(&self, address: u64) -> io::Result<u8> {
        let mut bytes = [0; 1];
        self.read(address, &mut bytes)?;
        Ok(bytes[0])
    }

    /// # Errors
    /// As [`Self::read`].
    fn read_u16(&self, address: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_ne_bytes(bytes))
    }

    /// # Errors
    /// As [`Self::read`].
    fn read_u32(&self, address: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// # Errors
    /// As [`Self::read`].
    fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// A pointer; `None` for NULL.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_pointer(&self, address: u64) -> io::Result<Option<u64>> {
        Ok(Some(self.read_u64(address)?).filter(|pointer| *pointer != 0))
    }

    /// A C string of up to 4,095 bytes; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// As [`Self::read`], and `InvalidData` for one that does not end.
    fn read_text(&self, address: u64) -> io::Result<String> {
        let mut text = Vec::new();
        while text.len() < MAX_TEXT {
            // Never across the end of an aligned piece: the next page may not be mapped.
            let mut piece = [0; 64];
            let at = address.wrapping_add(text.len() as u64);
            let piece = &mut piece[..64 - (at % 64) as usize];
            self.read(at, piece)?;
            if let Some(end) = piece.iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&piece[..end]);
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            text.extend_from_slice(piece);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a string without an end"))
    }
}

#[cfg(test)]
pub(crate) mod image {
    use std::{collections::BTreeMap, io};

    use super::Memory;

    /// Kernel memory made by hand.
    #[derive(Default)]
    pub(crate) struct Image(BTreeMap<u64, Vec<u8>>);

    impl Image {
        /// Maps `bytes` zero bytes.
        pub(crate) fn map(&mut self, address: u64, bytes: usize) -> &mut Self {
            self.0.insert(address, vec![0; bytes]);
            self
        }

        /// Overwrites mapped bytes.
        pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) -> &mut Self {
            let (start, region) = self.0.range_mut(..=address).next_back().expect("mapped");
            let offset = (address - start) as usize;
            region[offset..offset + bytes.len()].copy_from_slice(bytes);
            self
        }

        pub(crate) fn put_u64(&mut self, address: u64, value: u64) -> &mut Self {
            self.put(address, &value.to_ne_bytes())
        }

        pub(crate) fn put_u32(&mut self, address: u64, value: u32) -> &mut Self {
            self.put(address, &value.to_ne_bytes())
        }

        pub(crate) fn put_u16(&mut self, address: u64, value: u16) -> &mut Self {
            self.put(address, &value.to_ne_bytes())
        }
    }

    impl Memory for Image {
        fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
            let unmapped = || io::Error::from_raw_os_error(libc::EFAULT);
            let (start, region) = self.0.range(..=address).next_back().ok_or_else(unmapped)?;
            let offset = (address - start) as usize;
            let bytes = offset.checked_add(into.len()).and_then(|end| region.get(offset..end));
            into.copy_from_slice(bytes.ok_or_else(unmapped)?);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, image::Image};

    #[test]
    fn numbers_and_pointers_are_native_endian() {
        let mut image = Image::default();
        image.map(0x1000, 16).put_u64(0x1000, 0x0102_0304_0506_0708);
        assert_eq!(image.read_u64(0x1000).unwrap(), 0x0102_0304_0506_0708);
        assert_eq!(image.read_u32(0x1000).unwrap(), 0x0506_0708);
        assert_eq!(image.read_u16(0x1000).unwrap(), 0x0708);
        assert_eq!(image.read_u8(0x1007).unwrap(), 1);
        assert_eq!(image.read_pointer(0x1008).unwrap(), None);
    }

    #[test]
    fn text_ends_at_its_nul_even_at_the_end_of_mapped_memory() {
        let mut image = Image::default();
        image.map(0x1000, 128).put(0x107a, b"chain\0");
        assert_eq!(image.read_text(0x107a).unwrap(), "chain");
    }

    #[test]
    fn text_may_cross_pieces() {
        let long = "x".repeat(200);
        let mut image = Image::default();
        image.map(0x1000, 256).put(0x1003, long.as_bytes());
        assert_eq!(image.read_text(0x1003).unwrap(), long);
    }

    #[test]
    fn text_without_an_end_is_an_error() {
        let mut image = Image::default();
        image.map(0, 8192).put(0, &[b'x'; 8192]);
        assert!(image.read_text(0).is_err());
    }

    #[test]
    fn a_read_past_mapped_memory_is_an_error() {
        let mut image = Image::default();
        image.map(0x1000, 8);
        assert!(image.read_u64(0x1004).is_err());
        assert!(image.read_u8(0xfff).is_err());
    }
}
