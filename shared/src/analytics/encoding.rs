//! Small numbers in few bytes: LEB128, as Protocol Buffers have it (<https://protobuf.dev/programming-guides/encoding/#varints>).

use super::Unreadable;

/// Writes a number, seven bits a byte, the lowest first.
pub(super) fn put(mut value: u128, out: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Writes a number of either sign, small ones in few bytes.
pub(super) fn put_signed(value: i128, out: &mut Vec<u8>) {
    #[expect(clippy::cast_sign_loss, reason = "zigzag: the sign is the lowest bit")]
    put(((value << 1) ^ (value >> 127)) as u128, out);
}

/// Writes bytes behind their length.
pub(super) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put(bytes.len() as u128, out);
    out.extend_from_slice(bytes);
}

/// Reads what was written, from the front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Result<u8, Unreadable> {
        let (first, rest) = self.0.split_first().ok_or(Unreadable("it ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn number(&mut self) -> Result<u128, Unreadable> {
        let mut value = 0_u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            value |= u128::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unreadable("a number has no end"))
    }

    /// A number of four bytes at most, as nearly all are: a view reads millions of them, and 128 bits are slow.
    fn short(&mut self) -> Option<u64> {
        let mut value = 0;
        for (place, byte) in self.0.iter().take(4).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(place + 1..).unwrap_or_default();
                return Some(value);
            }
        }
        None
    }

    pub(super) fn count(&mut self) -> Result<u64, Unreadable> {
        match self.short() {
            Some(value) => Ok(value),
            None => u64::try_from(self.number()?).map_err(|_| Unreadable("a count is too large")),
        }
    }

    pub(super) fn signed(&mut self) -> Result<i128, Unreadable> {
        let value = self.number()?;
        #[expect(clippy::cast_possible_wrap, reason = "zigzag, undone")]
        Ok(((value >> 1) as i128) ^ -((value & 1) as i128))
    }

    pub(super) fn small(&mut self) -> Result<i64, Unreadable> {
        match self.short() {
            #[expect(clippy::cast_possible_wrap, reason = "zigzag, undone; and it has 28 bits")]
            Some(value) => Ok(((value >> 1) as i64) ^ -((value & 1) as i64)),
            None => i64::try_from(self.signed()?).map_err(|_| Unreadable("a number is too large")),
        }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unreadable("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = usize::try_from(self.number()?).map_err(|_| Unreadable("a length is too large"))?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_what_is_cut_off_is_no_number() {
        let unsigned = [0, 1, 127, 128, 300, u128::from(u64::MAX), u128::MAX];
        let signed = [0, -1, 1, -64, 64, i128::from(i64::MIN), i128::MAX, i128::MIN];
        let mut out = Vec::new();
        for value in unsigned {
            put(value, &mut out);
        }
        for value in signed {
            put_signed(value, &mut out);
        }
        let mut reader = Reader(&out);
        for value in unsigned {
            assert_eq!(reader.number(), Ok(value));
        }
        for value in signed {
            assert_eq!(reader.signed(), Ok(value));
        }
        assert!(reader.is_empty() && reader.byte().is_err());
        assert!(Reader(&[0x80]).number().is_err() && Reader(&[0xff; 30]).number().is_err() && Reader(&[5, 1]).bytes().is_err());
    }
}
