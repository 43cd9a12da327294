//! Bodies of events: JSON or JSON lines, as they are or packed.
//!
//! What must stay true: not a byte more than the limits is kept, however small the body claims to be: what is packed is unpacked up to the
//! limit and no further, and a zstd frame that asks for a larger window than any sender needs is refused before room is made for it.

use std::io::Read;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::{BODY_LIMIT, UNPACKED_LIMIT};
use crate::{
    extract,
    problem::{Code, Problem},
};

/// The largest window of a zstd frame: twice what every decoder for HTTP must have (RFC 9659 §3), as much as a body may have unpacked.
const WINDOW: u64 = UNPACKED_LIMIT as u64;

/// How events stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `{"events": […]}`.
    Json,
    /// An event a line.
    Lines,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// What the headers say of a body.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// How events stand in it.
    pub form: Form,
    /// How many bytes are said to come; 0 where nothing is said.
    pub announced: usize,
    encoding: Encoding,
}

impl Packed {
    /// Reads the headers.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported = |detail: &'static str| Problem::new(Code::ContentTypeUnsupported, detail);
        let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let form = match essence.as_str() {
            "application/json" => Form::Json,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Form::Lines,
            _ => {
                return Err(unsupported(
                    "Send JSON with the header `Content-Type: application/json`, or one event a line with `application/x-ndjson`.",
                ));
            }
        };
        let encoding = match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None => Encoding::Identity,
            Some(word) if word.eq_ignore_ascii_case(b"identity") => Encoding::Identity,
            Some(word) if word.eq_ignore_ascii_case(b"gzip") => Encoding::Gzip,
            Some(word) if word.eq_ignore_ascii_case(b"zstd") => Encoding::Zstd,
            Some(_) => return Err(unsupported("Pack the body by `gzip` or `zstd`, or send it as it is.")),
        };
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        Ok(Self { form, announced: length.unwrap_or(0).min(BODY_LIMIT), encoding })
    }

    /// Reads the body as it is sent, as long as there is room for it.
    pub async fn read(
        self,
        headers: &HeaderMap,
        body: Body,
        room: impl FnMut(usize) -> Result<(), Problem> + Send,
    ) -> Result<Bytes, Problem> {
        extract::read_within(headers, body, BODY_LIMIT, room).await
    }

    /// Unpacks it.
    pub fn unpack(self, bytes: Bytes) -> Result<Bytes, Problem> {
        let unpacked = match self.encoding {
            Encoding::Identity => return Ok(bytes),
            Encoding::Gzip => {
                let mut out = Vec::new();
                MultiGzDecoder::new(&*bytes).take(UNPACKED_LIMIT as u64 + 1).read_to_end(&mut out).map_err(|_| broken("gzip"))?;
                out
            }
            Encoding::Zstd => unpack_zstd(&bytes)?,
        };
        if unpacked.len() > UNPACKED_LIMIT {
            return Err(too_large());
        }
        Ok(unpacked.into())
    }
}

/// All frames of a body (RFC 8878 §3), up to one byte more than the limit.
fn unpack_zstd(bytes: &[u8]) -> Result<Vec<u8>, Problem> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while !rest.is_empty() && out.len() <= UNPACKED_LIMIT {
        if is_skippable(rest) {
            rest = behind_skippable(rest).ok_or_else(|| broken("zstd"))?;
            continue;
        }
        check_frame(rest)?;
        let mut decoder = StreamingDecoder::new(&mut rest).map_err(|_| broken("zstd"))?;
        let left = (UNPACKED_LIMIT + 1).saturating_sub(out.len());
        decoder.by_ref().take(left as u64).read_to_end(&mut out).map_err(|_| broken("zstd"))?;
        let decoder = decoder.into_frame_decoder();
        // The decoder reads it and leaves it to others to compare. Beyond the limit it has not come to it.
        if decoder.get_checksum_from_data().is_some_and(|sent| decoder.get_calculated_checksum() != Some(sent))
            && out.len() <= UNPACKED_LIMIT
        {
            return Err(broken("zstd"));
        }
    }
    Ok(out)
}

/// Whether the frame at the front has no data to unpack (RFC 8878 §3.1.2).
fn is_skippable(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|magic| u32::from_le_bytes(*magic) & 0xffff_fff0 == 0x184d_2a50)
}

/// What stands behind such a frame; `None` where it is cut off.
fn behind_skippable(bytes: &[u8]) -> Option<&[u8]> {
    let (size, rest) = bytes.get(4..)?.split_first_chunk()?;
    rest.get(usize::try_from(u32::from_le_bytes(*size)).ok()?..)
}

/// Refuses a frame that is no zstd, and one that no decoder of HTTP need take (RFC 9659 §3), with what to do.
fn check_frame(bytes: &[u8]) -> Result<(), Problem> {
    let unsupported = |detail: String| Err(Problem::new(Code::ContentTypeUnsupported, detail));
    let window = window(bytes).ok_or_else(|| broken("zstd"))?;
    if window > WINDOW && bytes.get(4).is_some_and(|descriptor| descriptor & 0b10_0000 != 0) {
        // It is as large as the content, all of which stands in one piece.
        return Err(too_large());
    }
    if window > WINDOW {
        let most = WINDOW / 1024 / 1024;
        return unsupported(format!(
            "To unpack this zstd data takes a window of {window} bytes; {most} MiB are the most. Pack it without --long and --ultra (a `windowLog` of 24 at most)."
        ));
    }
    // Bits 0 and 1 of the descriptor say how long the dictionary's id is (§3.1.1.1.1).
    if bytes.get(4).is_some_and(|descriptor| descriptor & 3 != 0) {
        return unsupported("This zstd data was packed with a dictionary, which nobody has here. Pack it without.".to_owned());
    }
    Ok(())
}

/// How much room the frame at the front asks for (RFC 8878 §3.1.1.1); `None` where there is no frame of data.
fn window(bytes: &[u8]) -> Option<u64> {
    let (descriptor, rest) = bytes.strip_prefix(&0xfd2f_b528_u32.to_le_bytes())?.split_first()?;
    let is_single = descriptor & 0b10_0000 != 0;
    if !is_single {
        let (exponent, mantissa) = (rest.first()? >> 3, u64::from(rest.first()? & 7));
        let base = 1_u64 << (10 + u32::from(exponent));
        return Some(base + base / 8 * mantissa);
    }
    // The window is the content, whose size stands behind the dictionary's id.
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?;
    let size = [1, 2, 4, 8].get(usize::from(descriptor >> 6)).copied()?;
    let field = rest.get(dictionary..dictionary + size)?;
    let mut whole = [0; 8];
    whole.iter_mut().zip(field).for_each(|(to, from)| *to = *from);
    Some(u64::from_le_bytes(whole).saturating_add(if size == 2 { 256 } else { 0 }))
}

fn too_large() -> Problem {
    Problem::new(Code::BodyTooLarge, format!("Unpacked, the body may have {UNPACKED_LIMIT} bytes at most; send fewer events at once."))
}

fn broken(encoding: &str) -> Problem {
    Problem::new(
        Code::BodyIncomplete,
        format!("The body is no whole {encoding} data, as its Content-Encoding says; pack and send it again."),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn packed(encoding: Encoding) -> Packed {
        Packed { form: Form::Json, announced: 0, encoding }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn what_was_packed_is_unpacked_also_in_several_parts() {
        let (one, two) = (b"{\"events\": ".as_slice(), b"[]}".as_slice());
        let whole = [one, two].concat();
        for (encoding, parts) in [
            (Encoding::Identity, whole.clone()),
            (Encoding::Gzip, [gzip(one), gzip(two)].concat()),
            (Encoding::Zstd, [zstd(one), zstd(two)].concat()),
        ] {
            assert_eq!(packed(encoding).unpack(parts.into()).unwrap(), whole);
        }
        for (encoding, bytes) in [(Encoding::Gzip, gzip(&whole)), (Encoding::Zstd, zstd(&whole))] {
            for cut in [1, bytes.len() / 2, bytes.len() - 1] {
                assert_eq!(
                    packed(encoding).unpack(bytes[..cut].to_vec().into()).unwrap_err().code(),
                    Code::BodyIncomplete,
                    "{encoding:?} {cut}"
                );
            }
        }
    }

    #[test]
    fn bombs_are_unpacked_to_the_limit_and_no_further() {
        let bomb = vec![b' '; UNPACKED_LIMIT + 1];
        for (encoding, bytes) in [(Encoding::Gzip, gzip(&bomb)), (Encoding::Zstd, zstd(&bomb))] {
            assert!(bytes.len() < BODY_LIMIT);
            assert_eq!(packed(encoding).unpack(bytes.into()).unwrap_err().code(), Code::BodyTooLarge);
        }
        // A frame that says it needs 2 GiB at a time.
        let greedy = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 0, 0, 0];
        assert_eq!(window(&greedy), Some(1 << 31));
        assert_eq!(packed(Encoding::Zstd).unpack(greedy.to_vec().into()).unwrap_err().code(), Code::ContentTypeUnsupported);
    }

    #[test]
    fn what_was_changed_on_its_way_is_refused() {
        let (one, two) = (zstd(b"{\"events\": "), zstd(b"[]}"));
        for (first, second) in [(one.len() - 1, None), (one.len() - 4, None), (usize::MAX, Some(two.len() - 1))] {
            let (mut one, mut two) = (one.clone(), two.clone());
            if let Some(byte) = one.get_mut(first) {
                *byte ^= 1;
            }
            if let Some(second) = second {
                two[second] ^= 1;
            }
            let refused = packed(Encoding::Zstd).unpack([one, two].concat().into()).unwrap_err();
            assert_eq!(refused.code(), Code::BodyIncomplete, "{first} {second:?}");
        }
    }

    #[test]
    fn frames_without_data_are_passed_over() {
        let skippable = |size: u32| [&0x184d_2a5f_u32.to_le_bytes()[..], &size.to_le_bytes(), b"abc"].concat();
        let unpack = |parts: &[Vec<u8>]| packed(Encoding::Zstd).unpack(parts.concat().into()).map_err(|problem| problem.code());
        assert_eq!(unpack(&[skippable(3), zstd(b"[]"), skippable(3)]).unwrap(), b"[]".as_slice());
        assert_eq!(unpack(&[skippable(4)]).unwrap_err(), Code::BodyIncomplete);
        assert_eq!(unpack(&[0x184d_2a50_u32.to_le_bytes().to_vec(), vec![1]]).unwrap_err(), Code::BodyIncomplete);
        // All in one piece of 2 GiB: its size has four bytes.
        let piece = [0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000, 0, 0, 0, 128];
        assert_eq!(unpack(&[piece.to_vec()]).unwrap_err(), Code::BodyTooLarge);
        // With a dictionary's id of one byte.
        let with_dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0b10_0001, 7, 1, 0, 0, 0];
        assert_eq!(unpack(&[with_dictionary.to_vec()]).unwrap_err(), Code::ContentTypeUnsupported);
    }
}
