/** Finds out whether the encoder of a graphics card, when one was asked for, works on this host. */
import { existsSync } from 'node:fs'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { discardOutput, runInSandbox } from '../sandbox.ts'
import { words } from './film-recipe.ts'
import type { FilmEncoder } from './film-recipe.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'

const renderNode = '/dev/dri/renderD128'

/** Device nodes that each encoder works through; nothing else of the host is seen by it. */
const devices: Record<FilmEncoder, readonly string[]> = {
  x264: [],
  nvenc: ['/dev/nvidia0', '/dev/nvidiactl', '/dev/nvidia-uvm'],
  qsv: [renderNode],
  vaapi: [renderNode],
}

export function filmEncoderDevices(encoder: FilmEncoder): readonly string[] {
  return devices[encoder]
}

/** Before every input of an encoder that works on a device. */
export function filmEncoderInit(encoder: FilmEncoder): string[] {
  return encoder === 'vaapi' ? ['-vaapi_device', renderNode] : []
}

/**
 * Tries the encoder on one picture.
 *
 * @param options.wanted As configured.
 * @param options.exists Whether a device node is there.
 * @returns `x264` when the wanted one is not there or does not work: a film is encoded all the same.
 */
export async function chooseFilmEncoder(options: {
  wanted: FilmEncoder
  ffmpeg: Ffmpeg
  isolation: IsolationLevel
  exists?: (device: string) => boolean
}): Promise<FilmEncoder> {
  const { wanted, ffmpeg, isolation, exists = existsSync } = options
  if (wanted === 'x264' || !devices[wanted].every((device) => exists(device))) return 'x264'
  const upload = wanted === 'vaapi' ? ['-vf', 'format=nv12,hwupload'] : []
  const { exit } = await runInSandbox(
    {
      isolation,
      program: ffmpeg.program,
      visible: [ffmpeg.program],
      devices: devices[wanted],
      args: () => [
        ...words('-nostdin -hide_banner -loglevel error'),
        ...filmEncoderInit(wanted),
        ...words('-f lavfi -i color=s=256x256:d=0.1'),
        ...upload,
        ...words(`-c:v h264_${wanted} -frames:v 1 -f null -`),
      ],
      bounds: { wallMs: 20_000, memoryBytes: 1024 ** 3, outputBytesMax: 1024 },
    },
    discardOutput,
  )
  return exit.outcome === 'ok' ? wanted : 'x264'
}
