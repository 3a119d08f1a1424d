/** Pictures of the gate's corpus. */

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import sharp from 'sharp'

import type { GateCase } from './cases.ts'

export const imageCases: readonly GateCase[] = [
  {
    name: 'a JPEG with EXIF and a position',
    quick: true,
    async make(folder) {
      const file = join(folder, 'a.jpg')
      await sharp({ create: { width: 64, height: 48, channels: 3, background: 'teal' } })
        .withExif({ IFD0: { Artist: 'canary-artist' }, IFD3: { GPSLatitude: '51/1 30/1 0/1' } })
        .jpeg()
        .toFile(file)
      return file
    },
    leaves: ['jpg'],
    gone: ['canary-artist'],
    removed: ['exif', 'gps'],
  },
  {
    name: 'words called a picture',
    quick: true,
    async make(folder) {
      await writeFile(join(folder, 'a.jpg'), 'these are only words')
      return join(folder, 'a.jpg')
    },
    refused: { code: 'media.unsupported', says: /text/ },
  },
]
