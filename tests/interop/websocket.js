'use strict'
// The module ws as a client, through a tunnel to web.js.
//
//     NODE_PATH=…/node_modules node websocket.js HOST PORT
//
// stdout: a line of JSON for each check: [what was checked, null or what went wrong, how many seconds it took].

const assert = require('assert')
const crypto = require('crypto')
const http = require('http')
const { once } = require('events')
const WebSocket = require('ws')

const [host, port] = process.argv.slice(2)
const base = `${host}:${port}`

// Whatever the host is called, the relay is here: not every machine knows what is under localhost.
const lookup = (name, { all }, give) => all ? give(null, [{ address: '127.0.0.1', family: 4 }]) : give(null, '127.0.0.1', 4)

const sha256 = (data) => crypto.createHash('sha256').update(data).digest('hex')

// A WebSocket whose messages and end can be waited for. Rejects when it doesn't open.
function connect (path, protocols = [], options = {}) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${base}${path}`, protocols, { lookup, ...options })
    const messages = []
    const waiting = []
    socket.next = () => messages.length ? Promise.resolve(messages.shift()) : new Promise((resolve) => waiting.push(resolve))
    socket.on('message', (data, binary) => {
      const message = binary ? data : data.toString()
      if (waiting.length) waiting.shift()(message)
      else messages.push(message)
    })
    socket.ended = new Promise((resolve) => socket.on('close', (code, reason) => resolve([code, reason.toString()])))
    socket.on('open', () => resolve(socket))
    socket.on('error', reject)
  })
}

async function end (socket) {
  socket.close(1000)
  assert.deepStrictEqual(await socket.ended, [1000, ''])
}

function get (path, agent) {
  return new Promise((resolve, reject) => {
    http.get(`http://${base}${path}`, { agent, lookup }, async (response) => {
      let body = ''
      for await (const piece of response) body += piece
      resolve([response.statusCode, body])
    }).on('error', reject)
  })
}

const checks = {
  async 'text and binary of all kinds of lengths, compressed' () {
    const socket = await connect('/echo')
    assert.strictEqual(socket.extensions, 'permessage-deflate')
    for (const size of [0, 1, 125, 126, 127, 1024, 65535, 65536, 1 << 20]) {
      const text = 'caf\u00e9 '.repeat(size).slice(0, size)
      socket.send(text)
      assert.strictEqual(await socket.next(), text)
      const data = crypto.randomBytes(size)
      socket.send(data)
      assert.strictEqual(sha256(await socket.next()), sha256(data))
    }
    await end(socket)
  },

  async 'the same, not compressed' () {
    const socket = await connect('/echo', [], { perMessageDeflate: false })
    assert.strictEqual(socket.extensions, '')
    for (const size of [0, 1, 125, 126, 127, 1024, 65535, 65536, 1 << 20]) {
      const data = crypto.randomBytes(size)
      socket.send(data)
      assert.strictEqual(sha256(await socket.next()), sha256(data))
    }
    await end(socket)
  },

  async 'a message in a hundred fragments' () {
    const socket = await connect('/echo')
    for (let i = 0; i < 100; i++) socket.send(`${i} `, { fin: i === 99 })
    assert.strictEqual(await socket.next(), Array.from({ length: 100 }, (_, i) => `${i} `).join(''))
    await end(socket)
  },

  async 'a thousand small messages, each after the answer to the one before' () {
    const socket = await connect('/echo')
    for (let i = 0; i < 1000; i++) {
      socket.send(`${i}`)
      assert.strictEqual(await socket.next(), `${i}`)
    }
    await end(socket)
  },

  async 'pings and pongs both ways' () {
    const socket = await connect('/ping')
    const pong = once(socket, 'pong')
    socket.ping('ours')
    assert.strictEqual((await pong)[0].toString(), 'ours')
    socket.send('theirs')
    assert.strictEqual(await socket.next(), 'theirs')
    await end(socket)
  },

  async 'closes with code and reason, by either side' () {
    const ours = await connect('/echo')
    ours.close(4001, 'ours')
    assert.deepStrictEqual(await ours.ended, [4001, 'ours'])
    const theirs = await connect('/close?code=4002&reason=theirs')
    theirs.send('go')
    assert.deepStrictEqual(await theirs.ended, [4002, 'theirs'])
  },

  async 'an end without a close, by either side' () {
    const theirs = await connect('/kill')
    theirs.send('go')
    assert.deepStrictEqual(await theirs.ended, [1006, ''])
    const ours = await connect('/echo?terminated')
    ours.terminate()
    assert.deepStrictEqual(await ours.ended, [1006, ''])
  },

  async 'messages right behind the 101, a hundred times' () {
    for (let i = 0; i < 100; i++) {
      const socket = await connect('/hello')
      for (const word of ['one', 'two', 'three']) assert.strictEqual(await socket.next(), word)
      await end(socket)
    }
  },

  async 'a subprotocol' () {
    const socket = await connect('/echo', ['echo.v1', 'echo.v2'])
    assert.strictEqual(socket.protocol, 'echo.v2')
    await end(socket)
  },

  async 'upgrade and keep-alive in one field, as Firefox has it' () {
    const socket = await connect('/echo', [], { headers: { Connection: 'keep-alive, Upgrade' } })
    socket.send('olleh')
    assert.strictEqual(await socket.next(), 'olleh')
    await end(socket)
  },

  async 'twenty at once, fifty messages each, and requests beside them' () {
    const sockets = await Promise.all(Array.from({ length: 20 }, () => connect('/echo')))
    await Promise.all(sockets.map(async (socket, i) => {
      for (let k = 0; k < 50; k++) {
        socket.send(`${i} ${k}`)
        assert.strictEqual(await socket.next(), `${i} ${k}`)
        if (k % 10 === 0) assert.strictEqual((await get('/state'))[0], 200)
      }
    }))
    assert.strictEqual(JSON.parse((await get('/state'))[1]).sockets, 20)
    await Promise.all(sockets.map(end))
  },

  async '200 one after another' () {
    for (let i = 0; i < 200; i++) {
      const socket = await connect('/echo')
      socket.send(`${i}`)
      assert.strictEqual(await socket.next(), `${i}`)
      await end(socket)
    }
  },

  async '64 MiB up and 64 MiB down' () {
    const socket = await connect('/bulk', [], { perMessageDeflate: false })
    const piece = crypto.randomBytes(65536)
    const hash = crypto.createHash('sha256')
    for (let i = 0; i < 1024; i++) {
      hash.update(piece)
      // Until it is written, so that what is held back is held back by the tunnel.
      await new Promise((resolve) => socket.send(piece, resolve))
    }
    socket.send('that was all')
    assert.deepStrictEqual(JSON.parse(await socket.next()), { length: 64 << 20, sha256: hash.digest('hex') })
    for (let i = 0; i < 1024; i++) assert.strictEqual((await socket.next()).length, 65536)
    assert.deepStrictEqual(await socket.ended, [1000, 'all'])
  },

  async 'a refusal with 401 is the upstream\'s own answer, and nothing is the worse for it' () {
    const agent = new http.Agent({ keepAlive: true })
    for (let i = 0; i < 5; i++) {
      const socket = new WebSocket(`ws://${base}/nobody`, [], { lookup })
      const [, response] = await once(socket, 'unexpected-response')
      let body = ''
      for await (const piece of response) body += piece
      const seen = [response.statusCode, response.headers['www-authenticate'], body]
      assert.deepStrictEqual(seen, [401, 'Basic realm="room"', 'not you\n'])
      assert.strictEqual((await get('/state', agent))[0], 200)
      const other = await connect('/echo')
      other.send('olleh')
      assert.strictEqual(await other.next(), 'olleh')
      await end(other)
    }
    agent.destroy()
  },

  async 'all of them are gone at the upstream' () {
    for (let tries = 0; tries < 100; tries++) {
      if (JSON.parse((await get('/state'))[1]).sockets === 0) return
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    assert.fail((await get('/state'))[1])
  }
}

async function main () {
  for (const [what, check] of Object.entries(checks)) {
    const start = Date.now()
    let late
    const patience = new Promise((resolve, reject) => {
      late = setTimeout(() => reject(new Error('it takes more than 30 s')), 30000)
    })
    const wrong = await Promise.race([check(), patience]).then(() => null, (error) => String(error.message))
    clearTimeout(late)
    console.log(JSON.stringify([what, wrong, (Date.now() - start) / 1000]))
  }
  process.exit(0)
}

main()
