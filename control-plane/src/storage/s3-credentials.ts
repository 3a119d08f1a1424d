/** Credentials of an S3 store, from a file in the form every S3 tool knows. */
import { SluiceError } from '@sluice/protocol/errors'
import { readSecretFile } from '@sluice/protocol/process/secret'

/** Far more than two keys and a profile name need. */
const fileBytesMax = 4096

/**
 * Reads `aws_access_key_id` and `aws_secret_access_key` of the profile `default` (the form of
 * `~/.aws/credentials`). Read anew at every call, so that a rotated file counts at once.
 *
 * @throws SluiceError `host.unsafe_file`, or `config.invalid` when a key is missing.
 */
export async function readS3Credentials(
  path: string,
): Promise<{ accessKeyId: string; secretAccessKey: string }> {
  using secret = await readSecretFile(path, fileBytesMax)
  const accessKeyId = valueOf(secret.bytes, 'aws_access_key_id')
  const secretAccessKey = valueOf(secret.bytes, 'aws_secret_access_key')
  if (accessKeyId === undefined || secretAccessKey === undefined)
    throw new SluiceError('config.invalid', `${path} holds no S3 credentials`, {
      hint: 'It needs the lines aws_access_key_id = … and aws_secret_access_key = … under [default].',
    })
  // The SDK signs with strings: these two are the only secrets of ours that cannot be wiped.
  return { accessKeyId, secretAccessKey }
}

function valueOf(file: Buffer, name: string): string | undefined {
  const section = /^\[default\]\s*$([^[]*)/m.exec(file.toString('utf8'))?.[1] ?? ''
  return new RegExp(`^\\s*${name}\\s*=\\s*(\\S+)\\s*$`, 'm').exec(section)?.[1]
}
