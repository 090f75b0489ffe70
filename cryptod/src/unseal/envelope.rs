//! age as this project uses it: a file sealed to one passphrase or to X25519 recipients, opened by the secret that fits.
//!
//! A stock `age` reads and writes the same files. Streams in, streams out; nothing here knows what is inside.

use std::io::{Read, Write};
use std::str::FromStr;

use age::secrecy::SecretString;
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, scrypt, x25519};
use openred_proto::unseal::{Order, RECIPIENTS, SECRET_BYTES};

use super::Failure;

/// What every text of an X25519 identity begins with.
const IDENTITY_PREFIX: &str = "AGE-SECRET-KEY-1";

/// Base-2 logarithm of scrypt's cost. Set on both sides: the library's own choice measures the machine and may take 128 MiB. There is no other than
/// these, so that nothing is sealed more weakly than the standard; tests do so by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkFactor(pub(super) u8);

impl WorkFactor {
    /// 2^16: 64 MiB and about a fifth of a second, once a start.
    pub const STANDARD: WorkFactor = WorkFactor(16);
    /// The most that is accepted from a file: 256 MiB.
    pub const MOST: WorkFactor = WorkFactor(18);
}

/// How a file is to be sealed.
pub enum Seal {
    /// To whoever knows this.
    Passphrase(SecretString, WorkFactor),
    /// To whoever has one of these recipients' identities.
    Recipients(Vec<x25519::Recipient>),
}

impl Seal {
    /// As an order wants it: to its recipients if it names any, else to its passphrase.
    ///
    /// # Errors
    /// [`Failure::BadRecipient`], [`Failure::NoPassphrase`], [`Failure::BadPassphrase`].
    pub fn ordered(order: &Order) -> Result<Self, Failure> {
        if order.recipients.is_empty() {
            return Ok(Self::Passphrase(passphrase(&order.secret)?, WorkFactor::STANDARD));
        }
        Self::to(&order.recipients)
    }

    /// To recipients by their text.
    ///
    /// # Errors
    /// [`Failure::BadRecipient`].
    pub fn to(recipients: &[String]) -> Result<Self, Failure> {
        let parse = |text: &String| x25519::Recipient::from_str(text).map_err(|_| Failure::BadRecipient);
        recipients.iter().map(parse).collect::<Result<_, _>>().map(Self::Recipients)
    }

    /// The recipients' texts; none behind a passphrase.
    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        match self {
            Self::Passphrase(..) => Vec::new(),
            Self::Recipients(recipients) => recipients.iter().map(ToString::to_string).collect(),
        }
    }

    /// A writer that seals into `out`; `finish` it, or the file is cut short.
    ///
    /// # Errors
    /// Of `out`.
    pub fn writer<W: Write>(&self, out: W) -> Result<StreamWriter<W>, Failure> {
        let encryptor = match self {
            Self::Passphrase(passphrase, work) => {
                let mut recipient = scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(work.0);
                age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            }
            Self::Recipients(recipients) => {
                let each = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
                age::Encryptor::with_recipients(each)
            }
        };
        let encryptor = encryptor.map_err(|_| Failure::BadRecipient)?;
        encryptor.wrap_output(out).map_err(Failure::io("sealing"))
    }
}

/// What came of looking at a sealed file with a secret.
pub struct Opened<R> {
    /// The content, authenticated as it is read.
    pub content: StreamReader<R>,
    /// How the same secret seals again.
    pub seal: Seal,
}

/// Opens a sealed file with a passphrase or identities, whichever its head asks for.
///
/// # Errors
/// Any [`Failure`] of secrets, [`Failure::Damaged`], [`Failure::TooMuchWork`].
pub fn open<R: Read>(sealed: R, secret: &[u8]) -> Result<Opened<R>, Failure> {
    let decryptor = age::Decryptor::new(sealed).map_err(|_| Failure::Damaged)?;
    if decryptor.is_scrypt() {
        let passphrase = passphrase(secret)?;
        let mut identity = scrypt::Identity::new(passphrase.clone());
        identity.set_max_work_factor(WorkFactor::MOST.0);
        let opened = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity));
        let content = opened.map_err(|error| refused(&error, Failure::WrongPassphrase))?;
        return Ok(Opened { content, seal: Seal::Passphrase(passphrase, WorkFactor::STANDARD) });
    }
    let identities = identities(secret)?;
    let opened = decryptor.decrypt(identities.iter().map(|identity| identity as &dyn age::Identity));
    let content = opened.map_err(|error| refused(&error, Failure::WrongIdentity))?;
    let own = identities.iter().map(x25519::Identity::to_public).collect();
    Ok(Opened { content, seal: Seal::Recipients(own) })
}

fn refused(error: &DecryptError, wrong: Failure) -> Failure {
    match error {
        DecryptError::ExcessiveWork { required, .. } => {
            Failure::TooMuchWork { asked: *required, most: WorkFactor::MOST.0 }
        }
        // The file key's own AEAD tells a wrong secret from a damaged file, as far as that can be told.
        DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed | DecryptError::NoMatchingKeys => wrong,
        _ => Failure::Damaged,
    }
}

/// One line's end is not part of a passphrase: editors and `echo` write it.
fn passphrase(secret: &[u8]) -> Result<SecretString, Failure> {
    let text = std::str::from_utf8(secret).map_err(|_| Failure::BadPassphrase)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text.len() {
        0 => Err(Failure::NoPassphrase),
        length if length > SECRET_BYTES || text.contains('\n') => Err(Failure::BadPassphrase),
        _ => Ok(SecretString::from(text.to_owned())),
    }
}

/// The lines of an identity file as `age-keygen` writes it: comments, blank lines, identities.
fn identities(secret: &[u8]) -> Result<Vec<x25519::Identity>, Failure> {
    let text = std::str::from_utf8(secret).map_err(|_| Failure::NeedsIdentity)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut identities = Vec::new();
    for line in lines {
        if !line.starts_with(IDENTITY_PREFIX) || identities.len() == RECIPIENTS {
            return Err(Failure::NeedsIdentity);
        }
        identities.push(x25519::Identity::from_str(line).map_err(|_| Failure::NeedsIdentity)?);
    }
    if identities.is_empty() { Err(Failure::NeedsIdentity) } else { Ok(identities) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const LIGHT: WorkFactor = WorkFactor(2);

    fn sealed(seal: &Seal) -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = seal.writer(&mut file).unwrap();
        writer.write_all(b"content").unwrap();
        writer.finish().unwrap();
        file
    }

    fn text(identity: &x25519::Identity) -> String {
        use age::secrecy::ExposeSecret;
        format!("# created: today\n\n{}\n", identity.to_string().expose_secret())
    }

    #[test]
    fn each_recipient_opens_and_nobody_else() {
        let [one, two, other] = [(); 3].map(|()| x25519::Identity::generate());
        let recipients: Vec<String> = [&one, &two].iter().map(|identity| identity.to_public().to_string()).collect();
        let file = sealed(&Seal::to(&recipients).unwrap());
        for identity in [&one, &two] {
            let mut content = Vec::new();
            open(&file[..], text(identity).as_bytes()).unwrap().content.read_to_end(&mut content).unwrap();
            assert_eq!(content, b"content");
        }
        assert!(matches!(open(&file[..], text(&other).as_bytes()).err(), Some(Failure::WrongIdentity)));
        let both = format!("{}{}", text(&other), text(&two));
        assert!(open(&file[..], both.as_bytes()).is_ok(), "any of several");
        for none in [&b"passphrase"[..], b"", b"# nothing\n", b"AGE-SECRET-KEY-1QQQ", b"\xff"] {
            assert!(matches!(open(&file[..], none).err(), Some(Failure::NeedsIdentity)));
        }
    }

    #[test]
    fn an_identity_is_no_passphrase() {
        let file = sealed(&Seal::Passphrase(SecretString::from("p".to_owned()), LIGHT));
        assert!(open(&file[..], b"p\n").is_ok());
        let identity = x25519::Identity::generate();
        let failure = open(&file[..], text(&identity).as_bytes()).err().unwrap();
        assert!(matches!(failure, Failure::BadPassphrase), "{failure}");
    }

    #[test]
    fn what_is_no_recipient() {
        for bad in ["", "age1", "ssh-ed25519 AAAA", "AGE-SECRET-KEY-1"] {
            assert!(matches!(Seal::to(&[bad.to_owned()]).err(), Some(Failure::BadRecipient)), "{bad}");
        }
    }

    #[test]
    fn what_is_no_passphrase() {
        let long = vec![b'a'; SECRET_BYTES + 1];
        for (text, empty) in [(&b""[..], true), (b"\n", true), (b"\xff\xfe", false), (&long, false), (b"a\nb", false)] {
            let failure = passphrase(text).unwrap_err();
            assert_eq!(matches!(failure, Failure::NoPassphrase), empty);
            assert_eq!(matches!(failure, Failure::BadPassphrase), !empty);
        }
    }
}
