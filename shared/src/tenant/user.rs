//! How end users may be called.

/// The longest name of a user, in characters.
const LONGEST_USER: usize = 255;

/// Whether a text can name an end user: 1 to 255 visible characters. The same rule for `X-Acting-User` and for the `owner`
/// of a body.
///
/// # Errors
/// What is wrong, to be put behind the field's name.
pub fn check_user(user: &str) -> Result<(), String> {
    let length = user.chars().count();
    if !(1..=LONGEST_USER).contains(&length) {
        return Err(format!("has {length} characters; 1 to {LONGEST_USER} are allowed"));
    }
    if user.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err("must have no spaces and no control characters".to_owned());
    }
    Ok(())
}
