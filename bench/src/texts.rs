//! What every message says, ours and the peers': those have the same words in their own programs.

/// The title of a push.
pub const PUSH_TITLE: &str = "Your export is ready";
/// Its text.
pub const PUSH_BODY: &str = "prompts.csv, 12 MB";
/// What a click on it opens.
pub const PUSH_URL: &str = "/exports/1";
/// The subject of a mail.
pub const MAIL_SUBJECT: &str = "Your week";
/// Its text: some lines.
pub const MAIL_TEXT: &str = "Hello,\n\nthis is what happened in your week: three prompts were liked, one was copied, and two people follow you now.\n\n\
                             All of it: https://promptlockr.example/week\n";
/// The same, set.
pub const MAIL_HTML: &str = "<p>Hello,</p><p>this is what happened in your week: three prompts were liked, one was copied, and two people follow \
                             you now.</p><p><a href=\"https://promptlockr.example/week\">All of it</a></p>";
