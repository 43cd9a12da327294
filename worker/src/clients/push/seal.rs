//! Sealing a message for one browser: RFC 8291 over `aes128gcm` of RFC 8188, in one record.

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree},
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use shared::{
    push::{PUBLIC_KEY, Subscription},
    random,
};

use super::PushError;

/// The longest body that every push service takes (RFC 8030, section 7.2).
const BODY: usize = 4_096;

/// Salt, record size, the key's length and the key (RFC 8188, section 2.1).
const HEADER: usize = 16 + 4 + 1 + PUBLIC_KEY;

/// AES-GCM's tag.
const TAG: usize = 16;

/// The longest payload: what a body holds beside its header, the tag, and the byte that ends the padding.
pub const LONGEST_PAYLOAD: usize = BODY - HEADER - TAG - 1;

/// Payloads are padded to a multiple of it, so that a body's length tells little of what is in it.
const PADDED_TO: usize = 128;

/// The record size that the header names; the one record is shorter (RFC 8291, section 4).
const RECORD: u32 = 4_096;

/// A length that HKDF is asked for.
struct Bytes<const N: usize>;

impl<const N: usize> KeyType for Bytes<N> {
    fn len(&self) -> usize {
        N
    }
}

/// Seals a payload by a fresh key and salt.
pub(super) fn seal(payload: &[u8], to: &Subscription) -> Result<Vec<u8>, PushError> {
    if payload.len() > LONGEST_PAYLOAD {
        return Err(PushError::TooLarge { bytes: payload.len() });
    }
    let private = PrivateKey::generate(&ECDH_P256).map_err(|_| PushError::Crypto)?;
    // One byte is the delimiter's.
    let padded = (payload.len() + 1).next_multiple_of(PADDED_TO).min(LONGEST_PAYLOAD + 1);
    seal_with(payload, padded, &private, random::bytes(), to).ok_or(PushError::Crypto)
}

/// The same with a given key and salt, the payload with its delimiter padded to `padded` bytes.
fn seal_with(payload: &[u8], padded: usize, private: &PrivateKey, salt: [u8; 16], to: &Subscription) -> Option<Vec<u8>> {
    let public = private.compute_public_key().ok()?;
    let public = public.as_ref();
    let browser = UnparsedPublicKey::new(&ECDH_P256, to.p256dh());

    // RFC 8291, section 3.4: what both agree on, bound to the browser's secret and to both keys.
    let info = [b"WebPush: info\0".as_slice(), to.p256dh(), public].concat();
    let secret: [u8; 32] = agree(private, browser, (), |agreed| {
        let mut secret = [0; 32];
        expand(to.auth(), agreed, &info, &mut secret).ok_or(())?;
        Ok(secret)
    })
    .ok()?;

    // RFC 8188, sections 2.2 and 2.3.
    let (mut key, mut nonce) = ([0; 16], [0; 12]);
    expand(&salt, &secret, b"Content-Encoding: aes128gcm\0", &mut key)?;
    expand(&salt, &secret, b"Content-Encoding: nonce\0", &mut nonce)?;

    let mut record = Vec::with_capacity(padded + TAG);
    record.extend_from_slice(payload);
    // The delimiter of the last record, then zeros.
    record.push(2);
    record.resize(padded.max(record.len()), 0);
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record).ok()?;

    let mut body = Vec::with_capacity(HEADER + record.len());
    body.extend_from_slice(&salt);
    body.extend_from_slice(&RECORD.to_be_bytes());
    body.push(u8::try_from(public.len()).ok()?);
    body.extend_from_slice(public);
    body.extend_from_slice(&record);
    Some(body)
}

/// HKDF with SHA-256 (RFC 5869), extract and expand.
fn expand<const N: usize>(salt: &[u8], input: &[u8], info: &[u8], out: &mut [u8; N]) -> Option<()> {
    let key = Salt::new(HKDF_SHA256, salt).extract(input);
    key.expand(&[info], Bytes::<N>).ok()?.fill(out).ok()
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    /// RFC 8291, section 5 and appendix A.
    #[test]
    fn the_rfcs_example_comes_out_byte_for_byte() {
        let private = PrivateKey::from_private_key(&ECDH_P256, &bytes("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw")).unwrap();
        let to = Subscription::read(
            "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
        )
        .unwrap();
        let payload = b"When I grow up, I want to be a watermelon";
        let salt = bytes("DGv6ra1nlYgDCS1FRnbzlw").try_into().unwrap();
        let body = seal_with(payload, 0, &private, salt, &to).unwrap();
        let expected = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(&body), expected);
        assert_eq!(body.len(), 144);
    }

    #[test]
    fn bodies_are_padded_and_never_too_long() {
        let to = Subscription::read(
            "https://push.example.net/",
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
        )
        .unwrap();
        let length = |payload: usize| seal(&vec![b'a'; payload], &to).map(|body| body.len()).map_err(|error| error.to_string());
        assert_eq!((length(0), length(127), length(128)), (Ok(230), Ok(230), Ok(358)));
        assert_eq!((LONGEST_PAYLOAD, length(LONGEST_PAYLOAD)), (3_993, Ok(BODY)));
        assert!(length(LONGEST_PAYLOAD + 1).unwrap_err().contains("3994"));
        // Fresh keys each time.
        assert_ne!(seal(b"a", &to).unwrap(), seal(b"a", &to).unwrap());
    }
}
