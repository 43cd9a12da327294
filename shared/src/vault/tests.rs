//! The cipher by the specification's own vectors, the seals by another program, and everything that must not open.

use std::{collections::HashSet, io::Write, process::Stdio};

use serde_json::{Value, json};

use super::*;

fn key(version: u8, fill: u8) -> String {
    format!("{version}:{}", BASE64.encode([fill; KEY]))
}

fn keys(text: &str) -> VaultKeys {
    VaultKeys::read(text).expect("keys")
}

const ADA: Binding<'static> = Binding { tenant: 7, user: "ada", provider: "openai" };

/// `McGrew` and Viega, "The Galois/Counter Mode of Operation (GCM)", appendix B: the test cases of 256-bit keys and 96-bit nonces.
#[test]
fn the_cipher_is_the_specification_s() {
    let key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    let plain =
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255";
    let cases = [
        ("00".repeat(32), "00".repeat(12), "", String::new(), "", "530f8afbc74536b9a963b4f1c4cb738b"),
        ("00".repeat(32), "00".repeat(12), "", "00".repeat(16), "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
        (
            key.to_owned(),
            "cafebabefacedbaddecaf888".to_owned(),
            "",
            plain.to_owned(),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
            "b094dac5d93471bdec1a502270e3cc6c",
        ),
        (
            key.to_owned(),
            "cafebabefacedbaddecaf888".to_owned(),
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            plain.get(..120).unwrap().to_owned(),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    for (key, nonce, aad, plain, sealed, tag) in cases {
        let bytes = |text: &str| hex::decode(text).unwrap();
        let cipher = cipher(&bytes(&key)).unwrap();
        let nonce: [u8; NONCE_LEN] = bytes(&nonce).try_into().unwrap();
        let mut data = bytes(&plain);
        let made = cipher.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bytes(aad)), &mut data).unwrap();
        assert_eq!((hex::encode(data), hex::encode(made.as_ref())), (sealed.to_owned(), tag.to_owned()));
    }
}

/// A nonce that comes twice under one key tells what both sealed, and lets others be forged (NIST SP 800-38D, section 8).
#[test]
fn no_nonce_comes_twice_and_no_data_key_does() {
    let (old, both) = (keys(&key(1, 1)), keys(&format!("{} {}", key(2, 2), key(1, 1))));
    let (mut wraps, mut data, mut data_keys) = (HashSet::new(), HashSet::new(), HashSet::new());
    let secret = SecretString::from("sk-test-the-same");
    for _ in 0..200 {
        let sealed = old.seal(&ADA, &secret).unwrap();
        let anew = both.rewrap(&ADA, &sealed).unwrap().unwrap();
        assert!(wraps.insert(sealed[WRAP_NONCE..WRAPPED].to_vec()) && wraps.insert(anew[WRAP_NONCE..WRAPPED].to_vec()), "of a wrap");
        assert!(data.insert(sealed[DATA_NONCE..DATA].to_vec()), "of a secret");
        assert!(data_keys.insert(old.unwrap(&ADA, &sealed).unwrap().to_vec()), "a data key");
    }
}

#[test]
fn what_is_sealed_for_one_opens_for_nobody_else_and_changed_for_nobody() {
    let (old, secret) = (keys(&key(1, 1)), SecretString::from("sk-test-ünïcode"));
    let sealed = old.seal(&ADA, &secret).unwrap();
    assert_eq!(old.open(&ADA, &sealed).unwrap().expose_secret(), secret.expose_secret());
    assert_ne!(sealed, old.seal(&ADA, &secret).unwrap(), "no two seals are alike");
    let others = [
        Binding { tenant: 8, ..ADA },
        Binding { user: "bob", ..ADA },
        Binding { provider: "google", ..ADA },
        Binding { user: "adao", provider: "penai", ..ADA },
    ];
    for other in others {
        assert_eq!(old.open(&other, &sealed).unwrap_err(), VaultError::Broken, "{other:?}");
        assert!(keys(&format!("{} {}", key(2, 2), key(1, 1))).rewrap(&other, &sealed).is_err(), "{other:?}");
    }
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(old.open(&ADA, &changed).is_err(), "byte {at}");
    }
    for length in 0..sealed.len() {
        assert!(old.open(&ADA, &sealed[..length]).is_err(), "{length} bytes");
    }
    // The same key under another version.
    let mut relabelled = sealed.clone();
    relabelled[1] = 2;
    assert_eq!(keys(&format!("{} {}", key(2, 1), key(1, 1))).open(&ADA, &relabelled).unwrap_err(), VaultError::Broken);
}

#[test]
fn keys_change_while_what_was_sealed_is_read() {
    let (old, both, new) = (keys(&key(1, 1)), keys(&format!("{} {}", key(2, 2), key(1, 1))), keys(&key(2, 2)));
    let sealed = old.seal(&ADA, &SecretString::from("sk-test")).unwrap();
    assert_eq!(new.open(&ADA, &sealed).unwrap_err(), VaultError::NoKey(1));
    assert_eq!(both.open(&ADA, &sealed).unwrap().expose_secret(), "sk-test");
    let anew = both.rewrap(&ADA, &sealed).unwrap().expect("it was wrapped by the old one");
    assert_eq!(new.open(&ADA, &anew).unwrap().expose_secret(), "sk-test");
    assert_eq!(both.rewrap(&ADA, &anew).unwrap(), None);
    assert_eq!(old.open(&ADA, &anew).unwrap_err(), VaultError::NoKey(2));
}

#[test]
fn keys_are_checked_when_they_are_read_and_shown_to_nobody() {
    assert_eq!(format!("{:?}", keys(&format!("{} {}", key(2, 2), key(1, 1)))), "[2, 1]");
    let wrong = [String::new(), "1:AAAA".to_owned(), key(0, 1), format!("{} {}", key(1, 1), key(1, 2)), BASE64.encode([1; KEY])];
    for text in wrong {
        assert!(VaultKeys::read(&text).is_none(), "{text}");
    }
}

/// Python's `cryptography`, told the layout, opens ours and makes some that we open.
#[test]
fn another_program_reads_and_writes_the_same_seals() {
    let keys = keys(&format!("{} {}", key(2, 9), key(1, 1)));
    let old = VaultKeys::read(&key(1, 1)).unwrap();
    let of = json!({ "1": BASE64.encode([1; KEY]), "2": BASE64.encode([9; KEY]) });
    let users = ["ada", "ünïcode 𝄞", "a", "with:colons and spaces"];
    let rows: Vec<Value> = users
        .iter()
        .enumerate()
        .map(|(number, user)| {
            let binding = Binding { tenant: 1_000_000 - i32::try_from(number).unwrap(), user, provider: "anthropic" };
            let sealed = if number % 2 == 0 { &old } else { &keys }.seal(&binding, &SecretString::from(format!("sk-{user}"))).unwrap();
            json!({ "keys": of, "tenant": binding.tenant, "user": user, "provider": "anthropic", "sealed": BASE64.encode(sealed), "make": format!("theirs {user}") })
        })
        .collect();
    let mut python = sandbox::judges::python(&["cryptography==50.0.2"]).unwrap_or_else(|error| panic!("{error}"));
    let judge = concat!(env!("CARGO_MANIFEST_DIR"), "/src/vault/judge.py");
    let mut python = python.arg(judge).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(json!(rows).to_string().as_bytes()).unwrap();
    let said: Vec<Value> = serde_json::from_slice(&python.wait_with_output().unwrap().stdout).unwrap();
    for (row, said) in rows.iter().zip(&said) {
        let user = row["user"].as_str().unwrap();
        assert_eq!(said["opened"], format!("sk-{user}"));
        let binding = Binding { tenant: i32::try_from(row["tenant"].as_i64().unwrap()).unwrap(), user, provider: "anthropic" };
        let made = BASE64.decode(said["made"].as_str().unwrap()).unwrap();
        assert_eq!(keys.open(&binding, &made).unwrap().expose_secret(), format!("theirs {user}"));
    }
    assert_eq!(said.len(), rows.len());
}
